"""Paths that come out of files: where they may lead, and the one way in which anything is removed.

A study, a pack or a bucket may come from somebody else. What its files call a path is a name inside it and no more: it
is relative, goes never up, and follows no link out. Whoever removes something says inside which folder it must lie.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LONGEST = 1000  # characters
MAGIC = frozenset("*?[]{}")  # clients of object stores read these as patterns


def is_inside_by_name(name: str) -> bool:
    """Whether a path is relative, never goes up, and is no pattern: `a/b`, but not `/a`, `../a`, `a//b`, `./a`, `a*`.
    """
    parts = name.split("/")
    return (0 < len(name) <= LONGEST and name.isprintable() and "\\" not in name and not MAGIC & set(name)
            and not any(part in ("", ".", "..") for part in parts))


def inside(root: Path, name: str) -> Path:
    """The path of that name in a folder. Raises ValueError where it would lie outside it, also by a link."""
    path = root / name
    if not is_inside_by_name(name) or not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} does not lie inside {root}")
    return path


def remove(path: Path, root: Path, if_possible: bool = False) -> None:
    """Remove a file, a link or a folder with all that is in it; what is not there is fine. A link is never followed.

    Raises ValueError where the path is not below `root`, and OSError where it cannot be removed, unless it is to be
    removed only `if_possible`.
    """
    path, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    if path == root or not path.is_relative_to(root) or not path.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is not removed: it does not lie inside {root}")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=if_possible)  # removes the links that it meets, not what they point to
        else:
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        if not if_possible:
            raise


def remove_objects(files: Any, root: str, names: Iterable[str], recursive: bool = False) -> None:
    """Remove objects below a remote path, by their names relative to it; files: of fsspec.

    Raises ValueError where a name does not lie below it, or would be read as a pattern.
    """
    names = list(names)
    if not root.strip("/") or ".." in root.split("/") or MAGIC & set(root):
        raise ValueError(f"nothing below {root!r} is removed: it names no folder")
    for name in names:
        if not is_inside_by_name(name):
            raise ValueError(f"{name!r} is not removed: it does not lie inside {root}")
    if names:
        files.rm([f"{root}/{name}" for name in names], recursive=recursive)


def link_out(folder: Path) -> Path | None:
    """A link somewhere in a folder that leads out of it, or nowhere; None where there is none."""
    root, waiting = folder.resolve(), [folder]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for entry in entries:
            if entry.is_symlink():
                try:
                    target = Path(entry.path).resolve(strict=True)
                except (OSError, RuntimeError):  # it leads nowhere, or in a circle
                    return Path(entry.path)
                if not target.is_relative_to(root):
                    return Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
    return None
