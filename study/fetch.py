"""A study brought home: from a shared folder or an object store to a folder here."""

import os
import shutil
from pathlib import Path

from study import storage
from study.errors import UserError
from study.home import NEEDED_TO_READ, Home
from trainables.paths import remove

RESULTS = ("results", "export")


def fetch(home: Home, out: Path, results_only: bool = False) -> int:
    """Copy a study to `out`, which must be new or empty, also while it runs. Returns the copy's size in bytes.

    results_only: what `status` and `report` read, the page and the exported student; without it also weights and
    logits, so that `export` works on the copy and `run` goes on with it.

    Raises UserError where `out` is taken, StorageError where it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another one")
    if results_only:
        home.bring(*RESULTS)
    draft = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        with storage.writing(out):
            draft.mkdir(parents=True)
            size = sum(_copy(file, home.folder, draft) for file in _wanted(home.folder, results_only))
            os.replace(draft, out)
    finally:
        remove(draft, draft.parent, if_possible=True)
    return size


def _wanted(folder: Path, results_only: bool) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    inside = [path.relative_to(folder) for path in files]
    return [path for path in inside if not storage.is_hidden(path) and (
        not results_only or path.parts[0] in RESULTS or path.name.endswith(NEEDED_TO_READ))]


def _copy(path: Path, source: Path, target: Path) -> int:
    """Copy a file, by its path relative to both, and return its size; 0 where its driver has removed it meanwhile."""
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(source / path, target / path)
    except FileNotFoundError:
        return 0
    return (target / path).stat().st_size
