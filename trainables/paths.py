"""Paths: which ones read from files are safe, the only way to remove anything, and this machine's cache.

A study, a pack or a bucket may come from a stranger. A path in its files must stay inside it: relative, never going up,
and not leading out through a link. Every removal names the folder that must contain it.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LONGEST = 1000  # characters
MAGIC = frozenset("*?[]{}")  # object store clients read these as patterns


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: $KDSTUDY_CACHE, else kdstudy in the user's cache folder."""
    if own := os.environ.get("KDSTUDY_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdstudy"


def is_inside_by_name(name: str) -> bool:
    """Whether a path is relative, never goes up, and is not a pattern: `a/b`, but not `/a`, `../a`, `a//b`, `./a` or
    `a*`."""
    parts = name.split("/")
    return (0 < len(name) <= LONGEST and name.isprintable() and "\\" not in name and not MAGIC & set(name)
            and not any(part in ("", ".", "..") for part in parts))


def inside(root: Path, name: str) -> Path:
    """The path of that name in a folder. Raises ValueError if it would lie outside, also through a link."""
    path = root / name
    if not is_inside_by_name(name) or not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} is not inside {root}")
    return path


def remove(path: Path, root: Path, if_possible: bool = False) -> None:
    """Remove a file, a link, or a folder with its content, if it exists. Links are never followed.

    Raises ValueError if the path is not below `root`, and OSError if it cannot be removed, unless `if_possible`.
    """
    path, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    if path == root or not path.is_relative_to(root) or not path.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is not removed: it is not inside {root}")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=if_possible)  # removes links, not their targets
        else:
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        if not if_possible:
            raise


def remove_objects(files: Any, root: str, names: Iterable[str], recursive: bool = False) -> None:
    """Remove objects below `root`, a remote path, by their names relative to it. files: a file system of fsspec.

    Raises ValueError if a name is not below `root` or would be read as a pattern, and what the file system raises.
    """
    names = list(names)
    for name in names:
        if not is_inside_by_name(name):
            raise ValueError(f"{name!r} is not removed: it is not inside {root}")
    if len(names) == 1 and not recursive:
        files.rm_file(f"{root}/{names[0]}")  # does not expand patterns
        return
    if not root.strip("/") or ".." in root.split("/") or MAGIC & set(root):
        raise ValueError(f"nothing below {root!r} is removed: it is not the path of a folder")
    if names:
        files.rm([f"{root}/{name}" for name in names], recursive=recursive)


def not_plain(folder: Path, apart: tuple[str, ...] = ()) -> Path | None:
    """The first entry found in a folder, at any depth, that is neither a file nor a folder, such as a link or a pipe;
    None if there is none.

    apart: folders directly in it to skip. An editor's lock, a link `.#NAME` to nothing, does not count.
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
                gone = not os.path.lexists(path)  # files of a running study come and go
                if not gone and not (entry.name.startswith(".#") and not path.exists()):
                    return path
    return None
