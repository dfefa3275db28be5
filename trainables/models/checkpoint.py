"""Files of weights as training programs leave them: safetensors, a state dict, or a checkpoint that holds one.

Nothing is unpickled but tensors and plain values: torch's weights_only=True, which refuses every class and function
that it does not know. One class more is let through, argparse.Namespace, since timm's training script keeps its
arguments in its checkpoints. It is a bag of attributes: to make one and to fill it runs no code of the file's choice.
"""

import argparse
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kdstudy.trainables.messages import one_line

# Where checkpoints keep their weights. As in timm, averaged weights (EMA) come first: where there are any, training
# programs evaluate these, and choose the best epoch by them.
PARTS = ("state_dict_ema", "model_ema", "state_dict", "model")
DEEPEST = 3  # parts within parts
AVERAGES = "n_averaged"  # a counter that torch's AveragedModel keeps among the weights
WRAPPERS = re.compile(r"^(module\.)+")  # of (Distributed)DataParallel and AveragedModel
COMPILED = "_orig_mod."  # of torch.compile, which may wrap a part of a model too
REFUSED = re.compile(r"GLOBAL (\S+)")  # in torch's message
MOST_SHOWN = 5


class RefusedError(ValueError):
    """A file holds more than weights, and is not loaded."""


@dataclass(frozen=True)
class State:
    """The weights in a file, without what wrappers put before their names.

    part: where in the file they are, such as `state_dict_ema`; None if the file holds nothing else.
    """

    weights: dict[str, torch.Tensor]
    part: str | None = None


def read_state(path: str | Path, names_as_they_are: bool = False) -> State:
    """Read a file of weights.

    names_as_they_are: nothing wrapped the model when they were saved. Raises ValueError, in one line, if there is no
    file, it is damaged, or it holds no weights, and RefusedError, which says what to do, if loading it could run code.
    """
    weights, part = _find_weights(path)
    name_of = str if names_as_they_are else unwrapped
    return State({name_of(name): _own_copy(value) for name, value in weights.items()}, part)


def part_of(path: str | Path) -> str | None:
    """The part of a file that `read_state` reads; see `State`. Raises what that raises."""
    return _find_weights(path)[1]


def unwrapped(name: str) -> str:
    """The name of a tensor without what wrappers put before it."""
    return WRAPPERS.sub("", name.replace(COMPILED, ""))


def _find_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], str | None]:
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise ValueError(f"{path} {'is a folder' if file.is_dir() else 'does not exist'}")
    content, parts = _load(file), []
    while isinstance(content, dict) and len(parts) < DEEPEST and (part := _part_within(content)):
        content = content[part]
        parts.append(part)
    weights = {name: value for name, value in content.items() if isinstance(name, str) and name != AVERAGES
               and isinstance(value, torch.Tensor)} if isinstance(content, dict) else {}
    if not weights:
        raise ValueError(f"it holds no weights: {_shown(content)}")
    return weights, ".".join(parts) or None


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy that no longer maps the file, in a type that NumPy has."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.float() if copy.dtype == torch.bfloat16 else copy


def _load(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, so that the optimizer's state beside the weights is not read.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # of many kinds
        if found := REFUSED.search(str(error)):
            raise RefusedError(
                f"it holds {found[1][:100]!r} beside weights, and loading that could run code; write its weights alone "
                "where it was made: torch.save(model.state_dict(), \"weights.pth\")") from None
        raise ValueError(f"it cannot be read: {one_line(error)}") from None


def _part_within(content: dict[Any, Any]) -> str | None:
    return next((part for part in PARTS if isinstance(content.get(part), dict)), None)


def _shown(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    names = ", ".join(repr(name)[:40] for name in list(content)[:MOST_SHOWN])
    more = ", …" if len(content) > MOST_SHOWN else ""
    return f"its entries are {names or 'none'}{more}; none is a tensor, or one of {', '.join(PARTS)} with tensors in it"
