"""All reads and writes of a study folder: atomic files, lines that survive a power cut, one driver at a time."""

import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from study.errors import UserError


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The file's value, or None where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_done(stage: Path, outcome: dict[str, Any]) -> None:
    """Write a stage's done-mark, which also lists the files that it vouches for."""
    files = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()
                   and path.name != "done.json" and not path.name.startswith("."))
    write_json(stage / "done.json", outcome | {"files": files})


def append_line(path: Path, line: str) -> None:
    """Append one line and return only once it is on the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, draft)
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, target)


def copy_stage(source: Path, target: Path) -> None:
    """Take over a finished stage of another study. Large files, which nobody ever changes, are shared where the file
    system can."""

    def share(origin: str, copy: str) -> None:
        if origin.endswith((".safetensors", ".npy", ".parquet")):
            try:
                os.link(origin, copy)
                return
            except OSError:
                pass
        shutil.copy2(origin, copy)

    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft, copy_function=share)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)


def is_locked(folder: Path) -> bool:
    """Whether a driver works on the study at this moment."""
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class StudyLock:
    """Held by the one driver of a study folder; the system frees it when the driver ends, however it ends."""

    def __init__(self, folder: Path):
        self._path = folder / ".lock"

    def __enter__(self) -> "StudyLock":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(f"{self._path.parent} is in use by {owner}; wait for it, stop it, or choose another "
                            "folder with --dir") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.truncate(0)
        self._file.close()
