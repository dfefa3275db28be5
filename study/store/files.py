"""Low-level access to a study folder: atomic writes, durable appends, and a lock for the driver."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kdstudy.errors import StorageError, StudyFailedError, UserError
from kdstudy.trainables.paths import remove


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a draft path next to `path`, and rename it to `path` at the end: readers never see a partial file.

    Raises StorageError where it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
    finally:
        remove(draft, path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn OSError and SafetensorError into a StorageError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot write {path}: {reason}; finished work is kept: {remedy(error)}") from error


def remedy(error: BaseException) -> str:
    """Return advice on how to fix a failed write, for an error message."""
    if getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make it writable, or work on a copy, which `kdstudy fetch STUDY OUT` makes"
    if is_full(error):
        return "make room, then run the same command again"
    return "make room for it or fix the cause, then run the same command again"


def is_full(error: BaseException) -> bool:
    """Whether an exception reports a full or read-only disk. Libraries raise various types for it."""
    said = ("No space left", "disk is full", "os error 28")
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or any(
        text in str(error) for text in said)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports that memory or address space has run out."""
    said = ("failed to map segment", "can't allocate memory", "Cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or any(
        text in str(error) for text in said)


@contextlib.contextmanager
def full_disk_noticed(folder: Path) -> Iterator[None]:
    """Turn any exception about a full disk into a StorageError of one line."""
    try:
        yield
    except StudyFailedError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        reason = getattr(error, "strerror", None) or "No space left on device"
        raise StorageError(f"cannot write to {folder}: {reason}; finished work is kept: {remedy(error)}") from error


def remove_drafts(folder: Path) -> None:
    """Remove drafts left by killed processes. Only the folder's driver may call this."""
    for path in list(folder.rglob(".*")):
        draft = re.fullmatch(r"\..+\.(\d+)(-journal)?", path.name)
        if draft and not _is_another(int(draft[1])):  # another process may be writing a report now
            remove(path, folder)


def _is_another(pid: int) -> bool:
    """Whether `pid` is another running process. In containers, earlier processes may have had our own id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid != os.getpid()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    with written(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """Return a JSON file's value, or None where the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def is_json(line: bytes) -> bool:
    """Whether a line of a record is whole."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_array(path: Path) -> np.ndarray:
    """Read a .npy file without unpickling. Raises StudyFailedError where it is damaged, FileNotFoundError."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(array, np.ndarray):
        raise _damaged(path, "it holds several arrays")
    return array


def write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getbuffer())


def is_whole_array(path: Path) -> bool:
    """Whether a .npy file exists and has the size that its header states."""
    try:
        return isinstance(np.load(path, mmap_mode="r"), np.ndarray)
    except Exception:
        return False


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Read a model's weights, by name. Raises StudyFailedError where the file is damaged, FileNotFoundError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, why: Exception | str) -> StudyFailedError:
    return StudyFailedError(f"{path} is damaged ({' '.join(str(why).split())[:200]}); restore it from a copy, or "
                            f"remove {path.parent} and run the study again")


def write_done(stage: Path, outcome: dict[str, Any]) -> None:
    """Write a stage's done-mark: the outcome, the stage's files with their sizes in bytes, and the record's seal."""
    files = {path.relative_to(stage).as_posix(): path.stat().st_size for path in sorted(stage.rglob("*"))
             if path.is_file() and path.name != "done.json" and not is_hidden(path.relative_to(stage))}
    record = stage / "record.jsonl"
    seal = {"record": seal_of(record.read_bytes())} if record.is_file() else {}
    write_json(stage / "done.json", outcome | seal | {"files": files})


def seal_of(record: bytes) -> dict[str, Any]:
    """Return a record's line count and digest for a done-mark, which reveal later edits or truncation.

    This is not a signature: it does not detect an edit of both files."""
    lines = record.count(b"\n")
    return {"lines": lines, "digest": digest_of(record, lines)}


def digest_of(record: bytes, lines: int) -> str:
    """Return a digest (32 hexadecimal digits) of the first `lines` lines of a record, newlines included."""
    first = b"".join(line + b"\n" for line in record.split(b"\n")[:lines]) if record.count(b"\n") >= lines else record
    return hashlib.blake2b(first, digest_size=16).hexdigest()


def vouched_for(stage: Path, done: dict[str, Any]) -> bool:
    """Whether all files that a done-mark lists exist and none is truncated."""
    files = done.get("files", {})
    sizes = files if isinstance(files, dict) else dict.fromkeys(files, 0)  # earlier versions listed only names
    return all((stage / name).is_file() and (stage / name).stat().st_size >= size for name, size in sizes.items())


def is_hidden(path: Path) -> bool:
    """Whether a relative path is hidden: drafts, locks and other files that are not results."""
    return any(part.startswith(".") for part in path.parts)


def has_text(path: Path, text: str) -> bool:
    """Whether a file exists and contains exactly `text`."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def append_line(path: Path, line: str) -> None:
    """Append one line and return once it is on disk.

    Raises StorageError and leaves the file unchanged where that fails.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            _write_all(file.fileno(), line.encode() + b"\n")
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def _write_all(descriptor: int, content: bytes) -> None:
    while content:  # a disk that is nearly full accepts only a part
        content = content[os.write(descriptor, content):]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically. Raises StorageError."""
    with written(target) as draft:
        shutil.copyfile(source, draft)


def copy_stage(source: Path, target: Path) -> None:
    """Copy a finished stage from another study. Large files, which never change, are hard-linked where possible.

    Raises StorageError."""

    def share(origin: str, copy: str) -> None:
        if origin.endswith((".safetensors", ".npy", ".parquet")):
            try:
                os.link(origin, copy)
                return
            except OSError:
                pass
        shutil.copy2(origin, copy)

    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with writing(target):
        remove(draft, target.parent)
        shutil.copytree(source, draft, copy_function=share)
        remove(target, target.parent)
        os.replace(draft, target)


def is_locked(folder: Path) -> bool:
    """Whether a driver on this file system is running the study now."""
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def lock_owner(folder: Path) -> str:
    """The driver that holds the study's lock, as "process 7 on host"."""
    try:
        return (folder / ".lock").read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


@contextlib.contextmanager
def waited_for(lock: Path) -> Iterator[None]:
    """Wait for a lock that is only ever held briefly, and hold it. Raises StorageError."""
    with contextlib.ExitStack() as held:
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(lock, "a", encoding="utf-8"))
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class StudyLock:
    """The lock that a study folder's driver holds. The system releases it even if the driver is killed.

    study: its name in messages. Raises UserError with the other driver's process and host if it is taken.
    """

    def __init__(self, folder: Path, study: str | None = None):
        self._path, self._study = folder / ".lock", study or str(folder)

    def __enter__(self) -> "StudyLock":
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+", encoding="utf-8")
        try:
            self._lock()
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(f"{self._study} is in use by {owner}; wait for it, stop it, or choose another "
                            "location with --dir") from None
        except OSError as error:
            self._file.close()
            raise UserError(f"{self._study} cannot be locked ({error.strerror}), so two drivers could write to it; "
                            "choose another location with --dir") from None
        with writing(self._path):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        return self

    def _lock(self) -> None:
        for _ in range(5):  # another process may be testing the lock for a moment
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.1)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()
