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
    for name in names:
        if not is_inside_by_name(name):
            raise ValueError(f"{name!r} is not removed: it does not lie inside {root}")
    if len(names) == 1 and not recursive:
        files.rm_file(f"{root}/{names[0]}")  # takes no name for a pattern
        return
    if not root.strip("/") or ".." in root.split("/") or MAGIC & set(root):
        raise ValueError(f"nothing below {root!r} is removed: it names no folder")
    if names:
        files.rm([f"{root}/{name}" for name in names], recursive=recursive)


def not_plain(folder: Path, apart: tuple[str, ...] = ()) -> Path | None:
    """What in a folder is neither a file nor a folder: a link, a pipe; None where there is nothing of the kind.

    apart: folders in it that are not looked into. An editor's lock, a link `.#NAME` to nothing, does not count.
    """
    waiting = [folder]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                if path.parent != folder or entry.name not in apart:
                    waiting.append(path)
            elif not entry.is_file(follow_symlinks=False):
                gone = not os.path.lexists(path)  # of a study that runs files come and go
                if not gone and not (entry.name.startswith(".#") and not path.exists()):
                    return path
    return None
