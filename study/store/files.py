"""All reads and writes of a study folder: atomic files, lines that survive a power cut, one driver at a time."""

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
    """A draft beside `path` to write to, which then takes its place: a reader sees the old file or the new one, never
    half of it. Raises StorageError."""
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
    """Turn what the system raises into a StorageError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot write {path}: {reason}; what is finished is kept: {remedy(error)}") from error


def remedy(error: BaseException) -> str:
    """What to do where something cannot be written."""
    if getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make it writable, or work on a copy, which `kdstudy fetch STUDY OUT` makes"
    if is_full(error):
        return "make room, then run the same command again"
    return "make room for it or mend that, then run the same command again"


def is_full(error: BaseException) -> bool:
    """Whether an exception says that nothing more can be written; libraries make kinds of their own of it."""
    said = ("No space left", "disk is full", "os error 28")
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or any(
        text in str(error) for text in said)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, or the address space, has run out."""
    said = ("failed to map segment", "can't allocate memory", "Cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or any(
        text in str(error) for text in said)


@contextlib.contextmanager
def full_disk_noticed(folder: Path) -> Iterator[None]:
    """Turn a full disk, whoever meets it, into a StorageError of one line."""
    try:
        yield
    except StudyFailedError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        reason = getattr(error, "strerror", None) or "No space left on device"
        raise StorageError(f"cannot write to {folder}: {reason}; what is finished is kept: {remedy(error)}") from error


def remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed had begun to write. Only for the one driver of the folder."""
    for path in list(folder.rglob(".*")):
        draft = re.fullmatch(r"\..+\.(\d+)(-journal)?", path.name)
        if draft and not _is_another(int(draft[1])):  # a report may be written meanwhile
            remove(path, folder)


def _is_another(pid: int) -> bool:
    """Whether there is a process of that number beside this one; in a container all may have the same."""
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
    """The file's value, or None where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def read_array(path: Path) -> np.ndarray:
    """An array's file. Nothing in it is unpickled. Raises StudyFailedError where it is damaged."""
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
    """Whether an array's file is there and as long as its header says."""
    try:
        return isinstance(np.load(path, mmap_mode="r"), np.ndarray)
    except Exception:
        return False


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """A model's weights, by name. Raises StudyFailedError where the file is damaged."""
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
    """Write a stage's done-mark, which also lists the files that it vouches for, with their sizes in bytes."""
    files = {path.relative_to(stage).as_posix(): path.stat().st_size for path in sorted(stage.rglob("*"))
             if path.is_file() and path.name != "done.json" and not is_hidden(path.relative_to(stage))}
    record = stage / "record.jsonl"
    seal = {"record": seal_of(record.read_bytes())} if record.is_file() else {}
    write_json(stage / "done.json", outcome | seal | {"files": files})


def seal_of(record: bytes) -> dict[str, Any]:
    """What a done-mark says of a record, so that one that is edited or cut afterwards is noticed: how many lines it
    has, and a digest of them. It is no signature: who edits both is not noticed."""
    lines = record.count(b"\n")
    return {"lines": lines, "digest": digest_of(record, lines)}


def digest_of(record: bytes, lines: int) -> str:
    """A digest of a record's first lines with their ends, 32 hexadecimal digits."""
    first = b"".join(line + b"\n" for line in record.split(b"\n")[:lines]) if record.count(b"\n") >= lines else record
    return hashlib.blake2b(first, digest_size=16).hexdigest()


def vouched_for(stage: Path, done: dict[str, Any]) -> bool:
    """Whether all the files that a done-mark lists are there, and none of them is cut short."""
    files = done.get("files", {})
    sizes = files if isinstance(files, dict) else dict.fromkeys(files, 0)  # earlier versions listed names alone
    return all((stage / name).is_file() and (stage / name).stat().st_size >= size for name, size in sizes.items())


def is_hidden(path: Path) -> bool:
    """Drafts, locks and what else is not part of a study's results."""
    return any(part.startswith(".") for part in path.parts)


def has_text(path: Path, text: str) -> bool:
    """Whether a file is there and holds this."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def append_line(path: Path, line: str) -> None:
    """Append one line and return only once it is on the disk. Where that fails the file stays as it was.

    Raises StorageError.
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
    while content:  # a disk that fills up takes a part first
        content = content[os.write(descriptor, content):]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the target appears whole or not at all. Raises StorageError."""
    with written(target) as draft:
        shutil.copyfile(source, draft)


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
    with writing(target):
        remove(draft, target.parent)
        shutil.copytree(source, draft, copy_function=share)
        remove(target, target.parent)
        os.replace(draft, target)


def is_locked(folder: Path) -> bool:
    """Whether a driver on this file system works on the study at this moment."""
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def lock_owner(folder: Path) -> str:
    """What a driver on this file system says that it is: "process 7 on host"."""
    try:
        return (folder / ".lock").read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


@contextlib.contextmanager
def waited_for(lock: Path) -> Iterator[None]:
    """Hold a lock that everybody gives back soon."""
    with contextlib.ExitStack() as held:
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(lock, "a", encoding="utf-8"))
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class StudyLock:
    """Held by the one driver of a study's folder; the system frees it when the driver ends, however it ends.

    place: what to call the study. Raises UserError, naming the other driver's process and host, where there is one.
    """

    def __init__(self, folder: Path, place: str | None = None):
        self._path, self._place = folder / ".lock", place or str(folder)

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
            raise UserError(f"{self._place} is in use by {owner}; wait for it, stop it, or choose another "
                            "place with --dir") from None
        except OSError as error:
            self._file.close()
            raise UserError(f"{self._place} cannot be locked ({error.strerror}), so two drivers could meet there; "
                            "choose a place that can, with --dir") from None
        with writing(self._path):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        return self

    def _lock(self) -> None:
        for _ in range(5):  # somebody may just look whether it is free
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.1)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()
