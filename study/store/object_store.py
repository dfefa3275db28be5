"""A study's objects in an object store, and the copy of them in a folder here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from kdstudy.errors import StorageError, UserError
from kdstudy.store import files
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.paths import is_inside_by_name, remove_objects

RECORD, PARTS = "record.jsonl", "record.parts"
BASE = ".record.base"  # the copy's names for what its record is put together from
LOCAL_PARTS = ".record.parts"
KNOWN = ".remote.json"
PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # scheme: the extra that brings its package
ACCESS = {"s3": "credentials and endpoint come from AWS_PROFILE, AWS_ENDPOINT_URL and the like",
          "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS and the like"}


class ObjectStore:
    """Moves files between a URI and a folder, only where they differ. Names are relative to the study, with slashes."""

    def __init__(self, folder: Path, uri: str):
        self.folder, self.uri = folder, uri

    @cached_property
    def _remote(self) -> tuple[AbstractFileSystem, str]:
        scheme = self.uri.split("://")[0]
        try:
            return fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        except ImportError as error:
            extra = PACKAGES.get(scheme)
            remedy = f"pip install 'kdstudy[{extra}]'" if extra else f"install it ({error})"
            raise UserError(f"{self.uri} needs a package that is not installed: {remedy}") from None
        except ValueError as error:
            raise UserError(f"{self.uri}: {error}; name a folder, or a URI such as s3://bucket/studies/mine") from None

    @property
    def system(self) -> AbstractFileSystem:
        """The client of the store. Raises UserError where a package is missing."""
        return self._remote[0]

    @property
    def root(self) -> str:
        """The study's path in the store."""
        return self._remote[1].rstrip("/")

    @contextlib.contextmanager
    def reached(self, kind: type[Exception] = StorageError) -> Iterator[None]:
        """Turn what clients of object stores raise, which is of many kinds, into one line."""
        try:
            yield
        except (UserError, StorageError):
            raise
        except Exception as error:
            if files.is_full(error) or str(getattr(error, "filename", None) or "").startswith(str(self.folder)):
                with files.writing(self.folder):  # this machine's copy is what cannot be written
                    raise
            reason = one_line(error)
            access = ACCESS.get(self.uri.split("://")[0])
            raise kind(f"cannot reach {self.uri}: {reason}; see that it exists and that this machine may write there"
                       f"{f' ({access})' if access else ''}, then run the same command again") from error

    def on_remote(self, path: Path) -> str:
        """Where a file of the copy lies in the store."""
        return f"{self.root}/{path.relative_to(self.folder).as_posix()}"

    @cached_property
    def known(self) -> dict[str, list[Any]]:
        """Per file that is the same here and there: the object's tag, and the local size and time of change."""
        known = files.read_json(self.folder / KNOWN)
        return known["objects"] if isinstance(known, dict) and known.get("uri") == self.uri else {}

    def keep_known(self) -> None:
        """Write down which files are the same here and there."""
        files.write_json(self.folder / KNOWN, {"uri": self.uri, "objects": self.known})

    def _note(self, name: str, info: dict[str, Any], local: Path) -> None:
        status = local.stat()
        self.known[name] = [_tag(info), status.st_size, status.st_mtime_ns]

    def is_noted(self, name: str, local: Path, info: dict[str, Any] | None = None) -> bool:
        """Whether the file is as it was when it was last brought here or there; and the object, if given, too."""
        if name not in self.known or not local.is_file():
            return False
        tag, *status = self.known[name]
        found = local.stat()
        return status == [found.st_size, found.st_mtime_ns] and (info is None or tag == _tag(info))

    def all_objects(self) -> dict[str, dict[str, Any]]:
        """All objects of the study but the hidden ones; those of Tune are many, so they are not even listed."""
        try:
            top = self.system.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        found = {}
        for info in top:
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if is_inside_by_name(name) and not files.is_hidden(Path(name)):
                found |= self.objects_below(info["name"]) if info["type"] == "directory" else {name: info}
        return found

    def objects_below(self, remote: str) -> dict[str, dict[str, Any]]:
        """The objects below a remote path by their names relative to the root, without what is hidden."""
        try:
            found = self.system.find(remote, detail=True)
        except FileNotFoundError:
            return {}
        names = {name.removeprefix(self.root).lstrip("/"): info for name, info in found.items()}
        # A bucket may hold any name; one that would lie elsewhere here is no file of a study.
        return {name: info for name, info in names.items()
                if is_inside_by_name(name) and not files.is_hidden(Path(name))}

    def local(self, name: str) -> Path:
        """Where an object lies here. A record's base and its events are put together under its own name."""
        path = self.folder / name
        if path.name == RECORD:
            return path.with_name(BASE)
        return path.parent.with_name(LOCAL_PARTS) / path.name if path.parent.name == PARTS else path

    def download(self, objects: dict[str, dict[str, Any]]) -> None:
        """Fetch those of the objects that are not here as they are there."""
        objects = {name: info for name, info in objects.items() if not self.is_noted(name, self.local(name), info)}
        if not objects:
            return
        targets = {name: self.local(name) for name in objects}
        drafts = [str(path.with_name(f".{path.name}.{os.getpid()}")) for path in targets.values()]
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        self.system.get([f"{self.root}/{name}" for name in objects], drafts)
        for (name, info), draft in zip(objects.items(), drafts, strict=True):
            os.replace(draft, targets[name])
            self._note(name, info, targets[name])
        self.keep_known()

    def upload(self, file: Path) -> None:
        """Make the object what the file is. Raises StorageError."""
        name = file.relative_to(self.folder).as_posix()
        if self.is_noted(name, file):
            return
        with self.reached():
            self.system.put_file(str(file), self.on_remote(file))
            self._note(name, self.system.info(self.on_remote(file)), file)

    def remove_others(self, folder: Path, kept: set[str]) -> None:
        """Remove the objects below a folder that are not among the remote paths `kept`. Raises StorageError."""
        with self.reached():
            others = [name for name in self.objects_below(self.on_remote(folder)) if f"{self.root}/{name}" not in kept]
            if others:
                remove_objects(self.system, self.root, others)
        for name in others:
            self.known.pop(name, None)

    def forget(self, found: set[str]) -> None:
        """Forget what was known of objects that are not among those found."""
        if gone := set(self.known) - found:
            for name in gone:
                del self.known[name]
            self.keep_known()

    def has(self, path: str) -> bool:
        """Whether there is something at a path relative to the study. Raises StorageError."""
        with self.reached():
            return self.system.exists(f"{self.root}/{path}")


def _tag(info: dict[str, Any]) -> str:
    """What changes when an object does."""
    times = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created"))
    return f"{info.get('size')} {next((time for time in times if time is not None), '')}"
