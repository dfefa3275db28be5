"""Functions of the user's own that build models, package.module:function: which may be called, and how they are found.

Whoever names a function has its code run. So while a command works on a study, only those are called that its user has
named or trusted: see `only_allowed`. In a worker, which gets what such a command has seen through, all are.
"""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kdstudy.trainables.messages import one_line

# What can be made to do anything at all by its arguments, torch.hub.load for one, and is no model function.
NO_MODELS = frozenset(sys.stdlib_module_names) | {"torch", "timm", "ray", "pip", "setuptools", "study", "trainables",
                                                  "analysis"}
FOLDER = "KDSTUDY_FUNCTIONS"  # for workers, which Tune moves elsewhere: the folder in which the command was given
_allowed: set[str] | None = None  # all


def is_function(name: str) -> bool:
    """Whether a model is named as package.module:function and not by timm's name."""
    return ":" in name


@contextlib.contextmanager
def only_allowed() -> Iterator[None]:
    """For a while no function is called but those that `allow` names."""
    global _allowed
    earlier, _allowed = _allowed, set()
    try:
        yield
    finally:
        _allowed = earlier


def allow(names: Iterable[str]) -> None:
    if _allowed is not None:
        _allowed.update(names)


def may_be_called() -> bool:
    """Whether there may be a function to call."""
    return _allowed is None or bool(_allowed)


def check_kind(name: str) -> None:
    """See whether this could be a function of somebody's own. Raises ValueError."""
    if name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        raise ValueError(f"model = {name!r} is a place, not a model; for a trained teacher set teacher.trained to its "
                         "folder, else name the model and set pretrained to true or to a weights file")
    top = name.partition(":")[0].partition(".")[0]
    if top in NO_MODELS:
        raise ValueError(f"model = {name!r}: what {top or 'it'} has is no model function; name a function of your own, "
                         "or a timm model")


def check(name: str) -> None:
    """See whether a function may be called, before anything of it is imported. Raises ValueError."""
    check_kind(name)
    if _allowed is not None and name not in _allowed:
        raise ValueError(f"model = {name!r} is a function that you have not named; if you trust it, add --trust")


def load(name: str) -> Callable[..., Any]:
    """Import package.module:function, also from the folder one is in. Raises ValueError."""
    check(name)
    module_name, _, function_name = name.partition(":")
    folder = os.environ.get(FOLDER) or os.getcwd()
    if folder not in sys.path:  # last: nothing in it stands in for a package
        sys.path.append(folder)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"model = {name!r} cannot be imported: {one_line(error)}") from None
    if not callable(function):
        raise ValueError(f"model = {name!r} is not a function")
    if (inspect.isroutine(function) or inspect.isclass(function)) and _top_of(function) in NO_MODELS:
        raise ValueError(f"model = {name!r} is {_top_of(function)}'s; name a function of your own, or a timm model")
    return function


def _top_of(function: Callable) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]


def source_file(name: str) -> Path:
    """The file that defines package.module:function. Raises ValueError where it cannot be imported."""
    try:
        return Path(inspect.getsourcefile(sys.modules[load(name).__module__]))
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"model = {name!r} has no Python file that defines it") from None
