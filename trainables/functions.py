"""The user's own functions, package.module:function: which may be called, and how they are found.

They build models or compute losses. `setting` is what a message calls the setting that names one.

Naming a function runs its code, and a study may come from a stranger. So within `only_allowed`, as in every command,
only those functions are called that the user has named or trusted. Workers call all: a command has let them pass.
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

# Packages whose functions are refused: with the right arguments some run anything, such as torch.hub.load.
NO_MODELS = frozenset(sys.stdlib_module_names) | {"torch", "timm", "ray", "pip", "setuptools", "kdstudy"}
# The variable that tells workers the command's current folder: Tune starts them in another one.
FOLDER = "KDSTUDY_FUNCTIONS"
_allowed: set[str] | None = None  # None allows all


def is_function(name: str) -> bool:
    """Whether a model's name is that of a function, package.module:function, and not timm's."""
    return ":" in name


@contextlib.contextmanager
def only_allowed() -> Iterator[None]:
    """Within this context, only functions that `allow` has named may be called."""
    global _allowed
    earlier, _allowed = _allowed, set()
    try:
        yield
    finally:
        _allowed = earlier


def allow(names: Iterable[str]) -> None:
    """Let functions be called until the current `only_allowed` ends."""
    if _allowed is not None:
        _allowed.update(names)


def may_be_called() -> bool:
    """Whether any function may be called."""
    return _allowed is None or bool(_allowed)


def check_kind(name: str, setting: str = "model") -> None:
    """Raises ValueError if a name cannot be that of one of the user's own functions."""
    if "loss" not in setting and name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        raise ValueError(f"{setting} = {name!r} is the address of a model, not its name; for a trained teacher set "
                         "teacher.trained to its folder, else name the model and set pretrained to true or to a "
                         "weights file")
    _check_package(name, name.partition(":")[0], setting)


def _check_package(name: str, module: str, setting: str) -> None:
    package = module.partition(".")[0]
    if package in NO_MODELS:
        other = "one of kdstudy's losses" if "loss" in setting else "a timm model"
        raise ValueError(f"{setting} = {name!r}: functions of {package!r} are refused; name your own function, or "
                         f"{other}")


def check(name: str, setting: str = "model") -> None:
    """Raises ValueError if a function may not be called. Imports nothing of it."""
    check_kind(name, setting)
    if _allowed is not None and name not in _allowed:
        raise ValueError(f"{setting} = {name!r} is a function that you have not named; if you trust it, add --trust")


def load(name: str, setting: str = "model") -> Callable[..., Any]:
    """Import package.module:function, also from the current folder.

    Raises ValueError if it may not be called, cannot be imported, or is not a function.
    """
    check(name, setting)
    module_name, _, function_name = name.partition(":")
    folder = os.environ.get(FOLDER) or os.getcwd()
    if folder not in sys.path:  # last, so that nothing in it replaces an installed package
        sys.path.append(folder)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{setting} = {name!r} cannot be imported: {one_line(error)}") from None
    if not callable(function):
        raise ValueError(f"{setting} = {name!r} is not a function")
    if inspect.isroutine(function) or inspect.isclass(function):  # the named module may have imported it
        _check_package(name, str(getattr(function, "__module__", "")), setting)
    return function


def source_file(name: str, setting: str = "model") -> Path:
    """The Python file that defines package.module:function. Raises ValueError if it cannot be imported or has none."""
    try:
        return Path(inspect.getsourcefile(sys.modules[load(name, setting).__module__]))
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{setting} = {name!r} is not defined in a Python file") from None
