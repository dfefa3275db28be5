"""Copy a study, or a series of studies, from a shared folder or an object store to a local folder."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kdstudy.errors import UserError
from kdstudy.store import files
from kdstudy.store.storage import NEEDED_TO_READ, Storage
from kdstudy.trainables.paths import remove

RESULTS = ("results", "export")


def fetch(storage: Storage, out: Path, results_only: bool = False, members: Mapping[str, Storage] | None = None,
          others: str = "") -> int:
    """Copy a study, running or not, to `out`, which must be new or empty. Returns the copy's size in bytes.

    results_only: copy only what `status` and `report` read, the report and the exported student. Otherwise weights
    and logits are copied too, so that `export` works on the copy and `run` resumes it. members: the studies of a
    series, by the names of their folders in it. others: how the names of the folders begin that are, or once were,
    members; those that are none now are left out.

    Raises UserError where `out` is not empty, StorageError where it cannot be written.
    """
    members = members or {}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another one")
    if results_only or members:
        storage.bring(*RESULTS)
    if results_only:
        for member in members.values():
            member.bring(*RESULTS)
    draft = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        with files.writing(out):
            draft.mkdir(parents=True)
            size = sum(_copy(file, storage.folder, draft) for file in _wanted(storage.folder, results_only)
                       if not (others and file.parts[0].startswith(others)))
            for name, member in members.items():
                size += sum(_copy(file, member.folder, draft / name) for file in _wanted(member.folder, results_only))
            os.replace(draft, out)
    finally:
        remove(draft, draft.parent, if_possible=True)
    return size


def _wanted(folder: Path, results_only: bool) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    inside = [path.relative_to(folder) for path in found]
    return [path for path in inside if not files.is_hidden(path) and (
        not results_only or path.parts[0] in RESULTS or path.name.endswith(NEEDED_TO_READ))]


def _copy(path: Path, source: Path, target: Path) -> int:
    """Copy a file by its relative path. Returns its size in bytes, or 0 if the driver has removed it meanwhile."""
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(source / path, target / path)
    except FileNotFoundError:
        return 0
    return (target / path).stat().st_size
