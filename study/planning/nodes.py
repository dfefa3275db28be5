"""The node check: every node reports its packages, its access to the study's storage and its free disk space.

The reporting functions run on the node, where kdstudy may be missing or another version. They are sent by value and
import all they need themselves.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdstudy.errors import UserError
from kdstudy.store.storage import Storage
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.paths import remove_objects
from kdstudy.tune.cluster import Node

PACKAGES = ("kdstudy", "kdstudy.trainables")  # packages whose source files must be the same on all nodes
APART = ("trainables", "analysis", "presets")  # subfolders of kdstudy with a digest of their own, or unused by workers
VERSIONED = ("ray", "torch", "timm", "numpy")
NEEDED = ("safetensors", "pyarrow", "pydantic", "fsspec")
NODE_SECONDS = 120.0  # for a node to respond; the first import of a user's own model may be slow
NOT_THERE = "not there"


def ask(nodes: list[Node], location: str, mark: str, functions: dict[str, str]) -> dict[Node, dict[str, Any]]:
    """Run the node check on all nodes concurrently.

    Returns, per node, the result of `_answer` plus `seen`: whether its probe file was visible here; or `silent`: why
    the node did not respond.

    location: of the study's storage, where the driver has written a file called `mark`. functions: the user's own, by
    setting.
    """
    import ray  # takes seconds to import
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    with _sent_by_value():
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_answer)
            asked[node] = task.remote(location, mark, _own(mark, node), functions)
    _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_SECONDS)
    seen = {node: _take_away(location, _own(mark, node)) for node in nodes}
    return {node: {"silent": f"node {node.name} did not answer within {NODE_SECONDS:g} s; check what keeps it "
                             "busy, or remove it from the cluster"} if task in silent
            else _answer_of(task, node) | {"seen": seen[node]} for node, task in asked.items()}


def _answer_of(task: Any, node: Node) -> dict[str, Any]:
    import ray  # takes seconds to import

    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return {"silent": f"node {node.name} cannot run a task: {one_line(error)}; repair it, or remove it from the "
                          "cluster"}


@contextlib.contextmanager
def _sent_by_value() -> Iterator[None]:
    """Make Ray pickle this module's functions by value, so that nodes do not need to import the module."""
    from ray import cloudpickle  # Ray takes seconds to import

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _own(mark: str, node: Node) -> str:
    """Return the name of the probe file that a node writes next to the driver's."""
    return f"{mark}-{node.id}"


def _answer(location: str, mark: str, own: str, functions: dict[str, str]) -> dict[str, Any]:
    """A Ray task: return a node's own report."""
    return {"environment": environment(functions), "storage": _use_storage(location, mark, own),
            "temporary": temporary_room()}


def temporary_room() -> tuple[str, int]:
    """Return the temporary folder that checkpoints pass through, and its free space in bytes."""
    return tempfile.gettempdir(), free_bytes(tempfile.gettempdir())


def free_bytes(folder: str) -> int:
    return shutil.disk_usage(folder).free


def environment(functions: dict[str, str]) -> dict[str, str]:
    """Return what training in this process depends on: versions and digests of source files. Imports nothing large."""
    found = {"Python": ".".join(map(str, sys.version_info[:2])), "kdstudy": _digest()}
    for name in VERSIONED:
        found[name] = _version(name)
    for name in NEEDED:
        found[name] = "there" if importlib.util.find_spec(name) else NOT_THERE
    for setting, function in functions.items():
        found[setting] = _imported(function)
    return found


def _version(name: str) -> str:
    """Return a package's version without its build tag: 2.9.1 for 2.9.1+cpu."""
    if importlib.util.find_spec(name) is None:
        return NOT_THERE
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _digest() -> str:
    """Return a digest of kdstudy's source files by relative path, which does not depend on how it is installed."""
    digest = hashlib.blake2b(digest_size=5)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # a nested package only after its parent was found
        if spec is None or not spec.submodule_search_locations:
            return NOT_THERE
        root = Path(next(iter(spec.submodule_search_locations)))
        for name in _sources(root):
            if package != PACKAGES[0] or name.split("/")[0] not in APART:
                digest.update(name.encode() + (root / name).read_bytes())
    return digest.hexdigest()


def _sources(root: Path) -> list[str]:
    """The source files of a package by their names below it, also behind links."""
    found = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    return sorted(file.relative_to(root).as_posix() for file in found if file.suffix == ".py")


def _imported(function: str) -> str:
    """Return a digest of the file that defines a user's own function, or why it cannot be imported."""
    module, _, name = function.partition(":")
    try:
        defined_in = sys.modules[getattr(importlib.import_module(module), name).__module__]
        return hashlib.blake2b(Path(defined_in.__file__).read_bytes(), digest_size=5).hexdigest()
    except (Exception, SystemExit) as error:
        return f"{NOT_THERE}: {' '.join(str(error).split())[:200]}"


def check_environment(node: Node, there: dict[str, str], here: dict[str, str], functions: dict[str, str]) -> None:
    """Compare a node's `environment` with this machine's. Raises UserError at the first difference."""
    for name in here:
        if there[name] == here[name]:
            continue
        if name in functions:
            what = (f"cannot be imported on node {node.name} ({there[name].removeprefix(f'{NOT_THERE}: ')})"
                    if there[name].startswith(NOT_THERE) else f"differs between node {node.name} and this machine")
            raise UserError(f"{name} = {functions[name]!r} {what}; put the same files on that node's Python path")
        if name == "kdstudy":
            what = "has no kdstudy" if there[name] == NOT_THERE else "has a different kdstudy than this machine"
            raise UserError(f"node {node.name} {what}; install this one there too (pip install, from the same source)")
        if there[name] == NOT_THERE:
            wanted = name if here[name] == "there" else f"{name}=={here[name]}"
            raise UserError(f"node {node.name} has no {name}; run there: pip install {wanted}")
        remedy = "install the same on both" if name == "Python" else f"run there: pip install {name}=={here[name]}"
        raise UserError(f"node {node.name} has {name} {there[name]}, this machine {here[name]}; {remedy}")


def probed_location(storage: Storage) -> str:
    """Return where a probe can write without leaving a trace: the study's URI, or its nearest existing parent folder.
    """
    if storage.uri is not None:
        return storage.uri
    folder = storage.folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, so {folder} cannot be a study folder; choose another location "
                        "with --dir")
    return str(nearest)


@contextlib.contextmanager
def probe(location: str) -> Iterator[str]:
    """Create a temporary file in `location` that contains its own unguessable name. Raises UserError."""
    import fsspec

    mark = f".kdstudy-probe-{secrets.token_hex(8)}"
    try:
        files, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        files.pipe_file(f"{root}/{mark}", mark.encode())
    except Exception as error:
        remedy = "make room there" if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else (
            "make it writable")
        raise UserError(f"cannot write to {location} ({_reason(error)}); {remedy}, or choose another location "
                        "with --dir") from None
    try:
        yield mark
    finally:
        with contextlib.suppress(Exception):
            remove_objects(files, root, [mark])


def _use_storage(location: str, mark: str, own: str) -> str | None:
    """Look for the driver's probe file and write the node's own. Returns an error message or None."""
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        if files.cat_file(f"{root}/{mark}") != mark.encode():
            return NOT_THERE
    except (FileNotFoundError, NotADirectoryError):
        return NOT_THERE
    except Exception as error:
        return f"read {location} ({_reason(error)})"
    try:
        files.pipe_file(f"{root}/{own}", own.encode())
    except Exception as error:
        return f"write to {location} ({_reason(error)})"
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


def check_storage(node: Node, answer: dict[str, Any], storage: Storage) -> None:
    problem = answer["storage"]
    if problem not in (None, NOT_THERE):
        raise UserError(f"node {node.name} cannot {problem}; fix that, or choose another location with --dir")
    if problem or not answer["seen"]:
        remedy = ("a folder on a file system that all nodes share, or an object store (s3://BUCKET/studies/NAME)"
                  if storage.uri is None else "one that all nodes reach with the same endpoint and permissions")
        raise UserError(f"{storage} is not shared with node {node.name}; choose with --dir {remedy}")


def _take_away(location: str, name: str) -> bool:
    """Remove a node's probe file. Returns whether it was visible here."""
    import fsspec

    files, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
    try:
        seen = files.cat_file(f"{root}/{name}") == name.encode()
    except Exception:
        return False
    with contextlib.suppress(Exception):
        remove_objects(files, root, [name])
    return seen
