"""Files at a path or a URI: which there are, and their content."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from kdstudy.trainables.messages import one_line

CLOUD_SECONDS = 20
FILE_SYSTEM_ERRORS = (pa.ArrowException, ValueError, OSError)


@dataclass(frozen=True)
class File:
    """A file below a location, as listed."""

    name: str  # relative to the location, with slashes
    size: int  # bytes
    changed: int  # nanoseconds since 1970


class Location:
    """A file or folder, local or at a URI that pyarrow opens.

    source: a path or URI. Raises ValueError if it cannot be opened, or is the root or home folder.
    """

    def __init__(self, source: str):
        self.source = source
        self._file_system, self.path = self._open()
        # A typing error: listing these would take an hour.
        if self.path in ("/", "/proc", "/sys", str(Path.home())):
            raise ValueError(f"data.source = {source!r} is not a folder of images; name the one that holds them")
        try:
            self._type = self._file_system.get_file_info(self.path).type
        except FILE_SYSTEM_ERRORS as error:
            raise self._problem("opened", error) from None

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.source:
            return pafs.LocalFileSystem(), str(Path(os.path.expanduser(self.source)).absolute())
        try:
            return pafs.FileSystem.from_uri(_with_time_limit(self.source))
        except FILE_SYSTEM_ERRORS as error:
            raise self._problem("opened", error) from None

    def _problem(self, done: str, error: Exception) -> ValueError:
        return ValueError(f"data.source = {self.source!r} cannot be {done}: {one_line(error)}")

    @property
    def exists(self) -> bool:
        return self._type != pafs.FileType.NotFound

    @property
    def is_file(self) -> bool:
        return self._type == pafs.FileType.File

    @property
    def files(self) -> list[File]:
        """All files in the folder and below, sorted by name, without hidden ones. Raises ValueError."""
        return self._listing[0]

    @property
    def folders(self) -> list[str]:
        """The names of all folders in the folder and below, relative to it and sorted, without hidden ones. Raises
        ValueError."""
        return self._listing[1]

    @cached_property
    def _listing(self) -> tuple[list[File], list[str]]:
        is_local = isinstance(self._file_system, pafs.LocalFileSystem)
        try:
            files, folders = _walk(self.path) if is_local else self._list()
        except FILE_SYSTEM_ERRORS as error:
            raise self._problem("read", error) from None
        return sorted(files, key=lambda file: file.name), sorted(folders)

    def _list(self) -> tuple[list[File], list[str]]:
        entries = self._file_system.get_file_info(pafs.FileSelector(self.path, recursive=True))
        named = [(info.path[len(self.path.rstrip("/")) + 1:], info) for info in entries]
        named = [(name, info) for name, info in named if not _is_hidden(name)]
        return ([File(name, info.size, info.mtime_ns or 0) for name, info in named if info.is_file],
                [name for name, info in named if info.type == pafs.FileType.Directory])

    def read(self, name: str = "") -> bytes:
        """The content of a file in the folder, or of the file itself. Raises OSError or ArrowException."""
        path = f"{self.path.rstrip('/')}/{name}" if name else self.path
        with self._file_system.open_input_file(path) as file:
            return file.read()


def _walk(root: str) -> tuple[list[File], list[str]]:
    """Files and folders below a local folder. Links are followed, except to a folder that contains them."""
    files, folders, pending = [], [], [("", (os.path.realpath(root),))]
    while pending:
        folder, above = pending.pop()
        for name, entry in _visible(root, folder):
            if entry.is_file():
                files.append(File(name, entry.stat().st_size, entry.stat().st_mtime_ns))
            elif entry.is_dir() and (real := os.path.realpath(entry.path)) not in above:
                folders.append(name)
                pending.append((name, (*above, real)))
    return files, folders


def _visible(root: str, folder: str) -> Iterator[tuple[str, os.DirEntry]]:
    """The entries of a folder that are not hidden, with their names relative to `root`."""
    for entry in os.scandir(os.path.join(root, folder)):
        if not _is_hidden(entry.name):
            yield f"{folder}/{entry.name}" if folder else entry.name, entry


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _with_time_limit(source: str) -> str:
    """Without a limit, Google's client retries for a quarter of an hour if there is no network."""
    if source.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in source:
        return f"{source}{'&' if '?' in source else '?'}retry_limit_seconds={CLOUD_SECONDS}"
    return source
