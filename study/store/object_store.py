"""Synchronise a study's objects in an object store with a local folder."""

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
BASE = ".record.base"  # local names of the parts that a record is rebuilt from
LOCAL_PARTS = ".record.parts"
KNOWN = ".remote.json"
PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # URI scheme: the kdstudy extra that it needs
ACCESS = {"s3": "credentials and endpoint come from AWS_PROFILE, AWS_ENDPOINT_URL and the like",
          "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS and the like"}


class ObjectStore:
    """Copies changed files between a URI and a folder. Names are relative to the study, with forward slashes."""

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
        """The fsspec file system. Raises UserError where its package is missing."""
        return self._remote[0]

    @property
    def root(self) -> str:
        """The study's path on the fsspec file system."""
        return self._remote[1].rstrip("/")

    @contextlib.contextmanager
    def reached(self, kind: type[Exception] = StorageError) -> Iterator[None]:
        """Turn the various exceptions of object store clients into `kind`, with a message of one line."""
        try:
            yield
        except (UserError, StorageError):
            raise
        except Exception as error:
            if files.is_full(error) or str(getattr(error, "filename", None) or "").startswith(str(self.folder)):
                with files.writing(self.folder):  # the local copy cannot be written
                    raise
            reason = one_line(error)
            access = ACCESS.get(self.uri.split("://")[0])
            raise kind(f"cannot reach {self.uri}: {reason}; check that it exists and that this machine may write there"
                       f"{f' ({access})' if access else ''}, then run the same command again") from error

    def on_remote(self, path: Path) -> str:
        """The remote path of a local file."""
        return f"{self.root}/{path.relative_to(self.folder).as_posix()}"

    @cached_property
    def known(self) -> dict[str, list[Any]]:
        """Per synchronised file: the object's tag, and the local size (bytes) and modification time."""
        known = files.read_json(self.folder / KNOWN)
        return known["objects"] if isinstance(known, dict) and known.get("uri") == self.uri else {}

    def keep_known(self) -> None:
        """Save which files are synchronised."""
        files.write_json(self.folder / KNOWN, {"uri": self.uri, "objects": self.known})

    def _note(self, name: str, info: dict[str, Any], local: Path) -> None:
        status = local.stat()
        self.known[name] = [_tag(info), status.st_size, status.st_mtime_ns]

    def is_noted(self, name: str, local: Path, info: dict[str, Any] | None = None) -> bool:
        """Whether a local file, and the object if given, are unchanged since they were last synchronised."""
        if name not in self.known or not local.is_file():
            return False
        tag, *status = self.known[name]
        found = local.stat()
        return status == [found.st_size, found.st_mtime_ns] and (info is None or tag == _tag(info))

    def all_objects(self) -> dict[str, dict[str, Any]]:
        """List all objects of the study except hidden ones. Skips Ray Tune's folder, which has too many to list."""
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
        """List the objects below a remote path by name relative to the root, except hidden ones."""
        try:
            found = self.system.find(remote, detail=True)
        except FileNotFoundError:
            return {}
        names = {name.removeprefix(self.root).lstrip("/"): info for name, info in found.items()}
        # Object names are arbitrary; skip those that would escape the local folder.
        return {name: info for name, info in names.items()
                if is_inside_by_name(name) and not files.is_hidden(Path(name))}

    def local(self, name: str) -> Path:
        """The local path of an object. A record's base and events get names of their own until they are merged."""
        path = self.folder / name
        if path.name == RECORD:
            return path.with_name(BASE)
        return path.parent.with_name(LOCAL_PARTS) / path.name if path.parent.name == PARTS else path

    def download(self, objects: dict[str, dict[str, Any]]) -> None:
        """Download the objects that are missing or different locally."""
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
        """Upload a file if it has changed. Raises StorageError."""
        name = file.relative_to(self.folder).as_posix()
        if self.is_noted(name, file):
            return
        with self.reached():
            self.system.put_file(str(file), self.on_remote(file))
            self._note(name, self.system.info(self.on_remote(file)), file)

    def remove_others(self, folder: Path, kept: set[str]) -> None:
        """Remove the objects below a folder except the remote paths in `kept`. Raises StorageError."""
        with self.reached():
            others = [name for name in self.objects_below(self.on_remote(folder)) if f"{self.root}/{name}" not in kept]
            if others:
                remove_objects(self.system, self.root, others)
        for name in others:
            self.known.pop(name, None)

    def forget(self, found: set[str]) -> None:
        """Forget the synchronisation state of objects that are not in `found`."""
        if gone := set(self.known) - found:
            for name in gone:
                del self.known[name]
            self.keep_known()

    def has(self, path: str) -> bool:
        """Whether an object exists at a path relative to the study. Raises StorageError."""
        with self.reached():
            return self.system.exists(f"{self.root}/{path}")


def _tag(info: dict[str, Any]) -> str:
    """A value that changes whenever the object changes."""
    times = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created"))
    return f"{info.get('size')} {next((time for time in times if time is not None), '')}"
