"""A lease that allows one driver at a time on an object store, which has no locks."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

from kdstudy.errors import StorageError, UserError
from kdstudy.trainables.paths import remove_objects

RENEWED_EVERY = 10.0  # seconds
STALE_AFTER = 60.0  # seconds without a renewal
CHECKED_EVERY = 1.0  # seconds, while waiting to see whether another driver's lease is stale
SETTLED_AFTER = 2.0  # seconds; if two drivers take over a stale lease, the later one wins
NOBODY = {"host": "?", "pid": 0, "processes": "", "run": "", "time": 0.0}


class Lease:
    """An object in the store that names the driver of a study. A thread renews it.

    A lease that is not renewed for a minute is stale and may be taken over. Staleness is judged by whether the object
    changes, so clocks need not agree. Raises UserError that names the holder where another driver is alive.
    """

    def __init__(self, files: AbstractFileSystem, path: str, study: str):
        self._files, self._path, self._study = files, path, study
        self._run = uuid.uuid4().hex
        self._ended = threading.Event()
        self._lost_to: str | None = None
        self._seen = 0.0  # when we last held the lease, on a clock that keeps running during suspend

    @staticmethod
    def holder(files: AbstractFileSystem, path: str) -> str | None:
        """Return who holds a lease that is fresh by this machine's clock, as "process 7 on host", or None."""
        holder = _read(files, path)
        alive = holder is not None and time.time() - holder["time"] < STALE_AFTER and not _is_dead_here(holder)
        return _name(holder) if alive else None

    def __enter__(self) -> "Lease":
        while not self._acquire():
            pass
        self._thread = threading.Thread(target=self._renew, name="study lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # the study is done, and the lease expires in a minute anyway
            if self._is_ours(_read(self._files, self._path)):
                folder, _, name = self._path.rpartition("/")
                remove_objects(self._files, folder, [name])

    def check(self) -> None:
        """Raise StorageError if another driver has taken over. Rereads the lease after this process was suspended."""
        if not self._lost_to and time.time() - self._seen > STALE_AFTER / 2:
            self._check_holder()
        if self._lost_to:
            raise StorageError(f"{self._study} was taken over by {self._lost_to} while this driver could not renew its "
                               "lease; finished work is kept, and the study continues there")

    def _content(self) -> bytes:
        return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "processes": _processes(),
                           "run": self._run, "time": time.time()}).encode()

    def _acquire(self) -> bool:
        """Create the lease or take over a stale one. Reads it back, since not every store creates objects exclusively.
        """
        holder = _read(self._files, self._path)
        if holder is None:
            try:
                self._files.pipe_file(self._path, self._content(), mode="create")
            except Exception:
                if _read(self._files, self._path) is None:
                    raise
        elif self._is_stale(holder):
            self._files.pipe_file(self._path, self._content())
        else:
            return False
        time.sleep(SETTLED_AFTER)
        self._seen = time.time()
        return self._is_ours(_read(self._files, self._path))

    def _is_stale(self, holder: dict[str, Any]) -> bool:
        """Watch another driver's lease; returns False if it is removed. Raises UserError as soon as it is renewed."""
        started = time.monotonic()
        while not _is_dead_here(holder):
            watched = time.monotonic() - started
            seems_old = time.time() - holder["time"] > STALE_AFTER
            if watched > STALE_AFTER or (seems_old and watched > 2 * RENEWED_EVERY):
                return True
            time.sleep(CHECKED_EVERY)
            now = _read(self._files, self._path)
            if now is None:
                return False
            if now != holder:
                raise UserError(f"{self._study} is in use by {_name(now)}; wait for it, stop it, or choose another "
                                "location with --dir")
        return True

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY) and not self._lost_to:
            # If the store is unreachable, the next renewal may succeed; study writes report their own errors.
            with contextlib.suppress(Exception):
                self._check_holder()
                if not self._lost_to:
                    self._files.pipe_file(self._path, self._content())

    def _check_holder(self) -> None:
        """Check whether the lease is still ours. If it is gone, another driver took it over and has ended since."""
        holder = _read(self._files, self._path)
        if self._is_ours(holder):
            self._seen = time.time()
        else:
            self._lost_to = _name(holder) if holder else "another driver"

    def _is_ours(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder["run"] == self._run


def _read(files: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """Return a lease's contents, or None where it is missing. An unreadable lease counts as free."""
    try:
        holder = json.loads(files.cat_file(path))
        return {name: holder[name] for name in NOBODY}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return NOBODY


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}"


def _processes() -> str:
    """An identifier of this machine or container, since process ids are only unique within one."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if holder["processes"] != _processes():
        return False
    if holder["pid"] == os.getpid():  # an earlier process with the same id, as in a restarted container
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
