"""Files at a path or a URI: which there are, and their content."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from kdstudy.trainables.messages import one_line
from kdstudy.trainables.sources import hub
from kdstudy.trainables.sources.store import File, Kind, Listing, Store, UnreachableError, is_hidden

CLOUD_SECONDS = 20
FILE_SYSTEM_ERRORS = (pa.ArrowException, ValueError, OSError)


class Location:
    """A file or folder: local, at a URI that pyarrow opens, on the Hugging Face hub, or in another store.

    source: a path or URI, as messages name it. Raises ValueError if it cannot be opened, or is the root or home folder.
    """

    def __init__(self, source: str, store: Store | None = None, path: str = ""):
        self.source = source
        self._store, self.path = (store, path) if store else self._open()
        # A typing error: listing these would take an hour.
        if self.path in ("/", "/proc", "/sys", str(Path.home())):
            raise ValueError(f"data.source = {source!r} is not a folder of images; name the one that holds them")
        try:
            self._kind = self._store.kind(self.path)
        except FILE_SYSTEM_ERRORS as error:
            raise self._problem("opened", error) from None

    def _open(self) -> tuple[Store, str]:
        if "://" not in self.source:
            return LocalStore(), str(Path(os.path.expanduser(self.source)).absolute())
        try:
            if self.source.startswith(hub.SCHEME):
                return hub.opened(self.source)
            system, path = pafs.FileSystem.from_uri(_with_time_limit(self.source))
            return (LocalStore() if isinstance(system, pafs.LocalFileSystem) else ArrowStore(system)), path
        except FILE_SYSTEM_ERRORS as error:
            raise self._problem("opened", error) from None

    def _problem(self, done: str, error: Exception) -> ValueError:
        return ValueError(f"data.source = {self.source!r} cannot be {done}: {one_line(error)}")

    @property
    def is_local(self) -> bool:
        """Whether `view` takes no memory."""
        return self._store.is_local

    @property
    def exists(self) -> bool:
        return self._kind is not None

    @property
    def is_file(self) -> bool:
        return self._kind == "file"

    @property
    def files(self) -> list[File]:
        """All files in the folder and below, sorted by name, without hidden ones; the file itself, if it is one. Raises
        ValueError."""
        return self._listing.files

    @property
    def folders(self) -> list[str]:
        """The names of all folders in the folder and below, relative to it and sorted, without hidden ones. Raises
        ValueError."""
        return self._listing.folders

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the listing, if anything. Raises ValueError."""
        return self._listing.notes

    @cached_property
    def _listing(self) -> Listing:
        try:
            found = self._store.listing(self.path)
        except FILE_SYSTEM_ERRORS as error:
            raise self._problem("read", error) from None
        return Listing(sorted(found.files, key=lambda file: file.name), sorted(found.folders), found.notes)

    def read(self, name: str = "") -> bytes:
        """The content of a file in the folder, or of the file itself. Raises OSError, ValueError or ArrowException."""
        return self._store.read(self._path_of(name))

    def view(self, name: str = "") -> pa.Buffer:
        """The same for a large file, which is mapped into memory if possible."""
        return self._store.view(self._path_of(name))

    def _path_of(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}" if name and not self.is_file else self.path


class LocalStore:
    """Folders of this machine."""

    is_local = True
    _system = pafs.LocalFileSystem(use_mmap=True)

    def kind(self, path: str) -> Kind | None:
        return _kind_of(self._system.get_file_info(path))

    def listing(self, path: str) -> Listing:
        if os.path.isfile(path):
            return Listing([_file_of(path, os.stat(path))], [])
        return _walk(path)

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def view(self, path: str) -> pa.Buffer:
        with self._system.open_input_file(path) as file:
            return file.read_buffer()


class ArrowStore:
    """A file system that pyarrow opens."""

    is_local = False

    def __init__(self, system: pafs.FileSystem):
        self._system = system

    def kind(self, path: str) -> Kind | None:
        return _kind_of(self._system.get_file_info(path))

    def listing(self, path: str) -> Listing:
        if (info := self._system.get_file_info(path)).is_file:
            return Listing([File(info.base_name, info.size, info.mtime_ns or 0)], [])
        entries = self._system.get_file_info(pafs.FileSelector(path, recursive=True))
        named = [(info.path[len(path.rstrip("/")) + 1:], info) for info in entries]
        named = [(name, info) for name, info in named if not is_hidden(name)]
        return Listing([File(name, info.size, info.mtime_ns or 0) for name, info in named if info.is_file],
                       [name for name, info in named if info.type == pafs.FileType.Directory])

    def read(self, path: str) -> bytes:
        try:
            with self._system.open_input_file(path) as file:
                return file.read()
        except FILE_SYSTEM_ERRORS as error:
            raise UnreachableError(one_line(error)) from None

    def view(self, path: str) -> pa.Buffer:
        return pa.py_buffer(self.read(path))


def _kind_of(info: pafs.FileInfo) -> Kind | None:
    return {pafs.FileType.NotFound: None, pafs.FileType.File: "file"}.get(info.type, "folder")


def _file_of(path: str, status: os.stat_result) -> File:
    return File(os.path.basename(path), status.st_size, status.st_mtime_ns)


def _walk(root: str) -> Listing:
    """Files and folders below a local folder. Links are followed, except to a folder that contains them."""
    files, folders, dangling, pending = [], [], [], [("", (os.path.realpath(root),))]
    while pending:
        folder, above = pending.pop()
        for name, entry in _visible(root, folder):
            if entry.is_file():
                files.append(File(name, entry.stat().st_size, entry.stat().st_mtime_ns))
            elif entry.is_dir():
                if (real := os.path.realpath(entry.path)) not in above:
                    folders.append(name)
                    pending.append((name, (*above, real)))
            elif entry.is_symlink():
                dangling.append(name)
    return Listing(files, folders, _about_links(dangling))


def _about_links(dangling: list[str]) -> tuple[str, ...]:
    if not dangling:
        return ()
    one = len(dangling) == 1
    return (f"{len(dangling)} {'link that leads' if one else 'links that lead'} nowhere {'is' if one else 'are'} left "
            f"out (first: {min(dangling)})",)


def _visible(root: str, folder: str) -> Iterator[tuple[str, os.DirEntry]]:
    """The entries of a folder that are not hidden, with their names relative to `root`."""
    for entry in os.scandir(os.path.join(root, folder)):
        if not is_hidden(entry.name):
            yield f"{folder}/{entry.name}" if folder else entry.name, entry


def _with_time_limit(source: str) -> str:
    """Without a limit, Google's client retries for a quarter of an hour if there is no network."""
    if source.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in source:
        return f"{source}{'&' if '?' in source else '?'}retry_limit_seconds={CLOUD_SECONDS}"
    return source
