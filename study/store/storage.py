"""Where a study lives: a folder, or a URI of an object store with a copy of it on this machine.

Everything is read from the folder. Where there is a URI, `fetch` brings the folder up to date with it, and `append` and
`publish` bring to it what has been written. Object stores cannot append: there a record is one object per event, which
`publish` turns into one file again.

    URI/STAGE/record.jsonl                 the record as it was at the last `publish`
    URI/STAGE/record.parts/00000123.json   an event since then, by its sequence number
    URI/.tune/...                          Ray Tune's checkpoints; only in the object store
    URI/.lease                             who works on the study
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.spec import AbstractFileSystem

from kdstudy.errors import StorageError, UserError
from kdstudy.store import files
from kdstudy.store.lease import Lease
from kdstudy.trainables.credentials import problem_with, redact
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.paths import MAGIC, cache_folder, inside, is_inside_by_name, remove, remove_objects

RECORD, PARTS = "record.jsonl", "record.parts"
BASE = ".record.base"  # the copy's names for what its record is put together from
LOCAL_PARTS = ".record.parts"
KNOWN = ".remote.json"
FETCHING = ".fetching"  # held by whoever brings the copy up to date
TUNE = ".tune"
COMPACT_AFTER = 500  # events, so that a reader does not have to fetch thousands of objects
NEEDED_TO_READ = (".toml", ".json", ".jsonl", ".parquet", ".csv", ".md")
WRITTEN_HERE = ("train", "tensorboard", "wandb")  # beside the study's own files, and published late or never
PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # scheme: the extra that brings its package
ACCESS = {"s3": "credentials and endpoint come from AWS_PROFILE, AWS_ENDPOINT_URL and the like",
          "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS and the like"}


class Storage:
    """A study's folder and, if it has one, its URI.

    folder: of the study, or of this machine's copy of it.
    """

    def __init__(self, folder: Path, uri: str | None = None):
        self.folder, self.uri = folder, uri
        self._lease: Lease | None = None
        self._parts: dict[Path, int] = {}  # events that lie as objects of their own, by record

    @classmethod
    def of(cls, place: "str | Path | Storage") -> "Storage":
        """The storage at a path or a URI. `file://` is a path; the path of a copy stands for what it is a copy of."""
        if isinstance(place, Storage):
            return place
        text = str(place)
        if problem := problem_with(text):
            raise UserError(f"{redact(text)} {problem}")
        if "://" not in text and text.split(":")[0] in PACKAGES and ":" in text:
            scheme, _, rest = text.partition(":")
            raise UserError(f"{text} is neither a folder nor a URI; did you mean {scheme}://{rest.lstrip('/')}?")
        if "://" not in text:
            known = files.read_json(Path(text) / KNOWN)
            uri = known.get("uri") if isinstance(known, dict) else None
            copy = None
            with contextlib.suppress(UserError):
                copy = cls.of(uri) if isinstance(uri, str) and "://" in uri else None
            # Only this machine's own copies are believed: a folder that was handed over may name any place.
            return copy if copy and copy.folder.resolve() == Path(text).resolve() else cls(Path(text))
        if text.startswith("file://"):
            try:
                return cls(Path(unquote(urlsplit(text).path)))
            except ValueError as error:
                raise UserError(f"{text} is no URI: {error}") from None
        if text.startswith("memory://"):
            raise UserError(f"{text} is gone when the command ends; name a folder, or a URI such as "
                            "s3://bucket/studies/mine")
        uri = text.rstrip("/")
        parent, _, name = uri.rpartition("/")
        if not parent or parent.endswith((":/", ":")) or name in (".", ".."):
            raise UserError(f"{text} names no folder in it; choose one, as in {uri}/studies/mine")
        if MAGIC & set(uri):
            raise UserError(f"{text} is a pattern; name one folder, without any of * ? [ ] {{ }}")
        return cls(_copies_of(parent) / name, uri)

    def __str__(self) -> str:
        return self.uri or str(self.folder)

    # -- one driver at a time -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def driven(self) -> Iterator[None]:
        """Held by the one driver of the study. Raises UserError, naming the other, where there is one."""
        with contextlib.ExitStack() as held:
            held.enter_context(files.StudyLock(self.folder, str(self)))
            if self.uri is not None:
                with self._reached(UserError):
                    self._lease = held.enter_context(Lease(self._files, f"{self._root}/.lease", str(self)))
                with files.waited_for(self.folder / FETCHING):
                    self._fetch(everything=True)
            yield

    def is_driven(self) -> bool:
        """Whether a driver works on the study at this moment."""
        return self.driver() is not None

    def driver(self) -> str | None:
        """Who works on the study at this moment, as "process 7 on host"; None where nobody does."""
        if files.is_locked(self.folder):
            return files.lock_owner(self.folder)
        if self.uri is None:
            return None
        with self._reached(UserError):
            return Lease.holder(self._files, f"{self._root}/.lease")

    # -- the object store ---------------------------------------------------------------------------------------------

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
    def _files(self) -> AbstractFileSystem:
        return self._remote[0]

    @property
    def _root(self) -> str:
        return self._remote[1].rstrip("/")

    @contextlib.contextmanager
    def _reached(self, kind: type[Exception] = StorageError) -> Iterator[None]:
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

    def _on_remote(self, path: Path) -> str:
        return f"{self._root}/{path.relative_to(self.folder).as_posix()}"

    @cached_property
    def _known(self) -> dict[str, list[Any]]:
        """Per file that is the same here and there: the object's tag, and the local size and time of change."""
        known = files.read_json(self.folder / KNOWN)
        return known["objects"] if isinstance(known, dict) and known.get("uri") == self.uri else {}

    def _keep_known(self) -> None:
        files.write_json(self.folder / KNOWN, {"uri": self.uri, "objects": self._known})

    def _note(self, name: str, info: dict[str, Any], local: Path) -> None:
        status = local.stat()
        self._known[name] = [_tag(info), status.st_size, status.st_mtime_ns]

    def _is_noted(self, name: str, local: Path, info: dict[str, Any] | None = None) -> bool:
        """Whether the file is as it was when it was last brought here or there; and the object, if given, too."""
        if name not in self._known or not local.is_file():
            return False
        tag, *status = self._known[name]
        found = local.stat()
        return status == [found.st_size, found.st_mtime_ns] and (info is None or tag == _tag(info))

    # -- from there to here -------------------------------------------------------------------------------------------

    def refresh(self, everything: bool = False) -> None:
        """Bring the copy up to date for a reader. A driver on this machine keeps it so by itself.

        everything: also what only training and export need. Raises UserError where the URI cannot be read.
        """
        if self.uri is None:
            return
        with files.waited_for(self.folder / FETCHING):
            if not files.is_locked(self.folder):
                self._fetch(everything)

    def bring(self, *names: str) -> None:
        """Bring all that lies in some of the study's folders to the copy. Raises UserError likewise."""
        if self.uri is None:
            return
        with files.waited_for(self.folder / FETCHING), self._reached(UserError):
            if not files.is_locked(self.folder):
                for name in names:
                    self._download(self._list(f"{self._root}/{name}"))

    def _fetch(self, everything: bool) -> None:
        with self._reached(UserError):
            try:
                found = self._download_wanted(everything)
            except FileNotFoundError:  # a driver elsewhere has made one file of a record's events meanwhile
                found = self._download_wanted(everything)
        self._forget_what_is_gone(set(found))
        for stage in {path.parent for pattern in (BASE, LOCAL_PARTS) for path in self.folder.glob(f"*/{pattern}")}:
            _assemble_record(stage)

    def _download_wanted(self, everything: bool) -> dict[str, dict[str, Any]]:
        found = self._list_all()
        self._download({name: info for name, info in found.items() if everything or name.endswith(NEEDED_TO_READ)})
        return found

    def _list_all(self) -> dict[str, dict[str, Any]]:
        """All objects of the study but the hidden ones; those of Tune are many, so they are not even listed."""
        try:
            top = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        found = {}
        for info in top:
            name = info["name"].rstrip("/").rsplit("/", 1)[-1]
            if is_inside_by_name(name) and not files.is_hidden(Path(name)):
                found |= self._list(info["name"]) if info["type"] == "directory" else {name: info}
        return found

    def _list(self, remote: str) -> dict[str, dict[str, Any]]:
        """The objects below a remote path by their names relative to the root, without what is hidden."""
        try:
            found = self._files.find(remote, detail=True)
        except FileNotFoundError:
            return {}
        names = {name.removeprefix(self._root).lstrip("/"): info for name, info in found.items()}
        # A bucket may hold any name; one that would lie elsewhere here is no file of a study.
        return {name: info for name, info in names.items()
                if is_inside_by_name(name) and not files.is_hidden(Path(name))}

    def _local(self, name: str) -> Path:
        """Where an object lies here. A record's base and its events are put together under its own name."""
        path = self.folder / name
        if path.name == RECORD:
            return path.with_name(BASE)
        return path.parent.with_name(LOCAL_PARTS) / path.name if path.parent.name == PARTS else path

    def _download(self, objects: dict[str, dict[str, Any]]) -> None:
        """Fetch those of the objects that are not here as they are there."""
        objects = {name: info for name, info in objects.items() if not self._is_noted(name, self._local(name), info)}
        if not objects:
            return
        targets = {name: self._local(name) for name in objects}
        drafts = [str(path.with_name(f".{path.name}.{os.getpid()}")) for path in targets.values()]
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        self._files.get([f"{self._root}/{name}" for name in objects], drafts)
        for (name, info), draft in zip(objects.items(), drafts, strict=True):
            os.replace(draft, targets[name])
            self._note(name, info, targets[name])
        self._keep_known()

    def _forget_what_is_gone(self, found: set[str]) -> None:
        """Remove what is not there. What never was may be somebody's work in progress: only the driver knows better,
        but for what is made beside it."""
        kept = {self._local(name) for name in found} | {self._local(name).with_name(RECORD) for name in found
                                                        if name.endswith(f"/{RECORD}")}
        kept |= {self.folder / Path(name).parent.parent / RECORD for name in found if f"/{PARTS}/" in name}
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder)
            ours = not files.is_hidden(inside) or path.name == BASE or path.parent.name == LOCAL_PARTS
            result = path.name != RECORD and not files.is_hidden(inside)
            progress = inside.parts[0] in WRITTEN_HERE if self._lease else result
            if path.is_file() and ours and path not in kept and (not progress or inside.as_posix() in self._known):
                remove(path, self.folder)
        gone = set(self._known) - found
        for name in gone:
            del self._known[name]
        if gone:
            self._keep_known()

    def neighbours(self, stage: str) -> list[Path]:
        """The folders of a stage in the studies beside this one that have done it; copies are brought up to date."""
        for name in self._siblings:
            Storage(self.folder.parent / name, f"{self.uri.rsplit('/', 1)[0]}/{name}")._refresh_stage(stage)
        return [path for path in sorted(self.folder.parent.glob(f"*/{stage}")) if path.parent != self.folder]

    @cached_property
    def _siblings(self) -> list[str]:
        """What lies beside this study at its URI, as far as this machine may look there."""
        if self.uri is None:
            return []
        try:
            beside = self._files.ls(self._root.rsplit("/", 1)[0], detail=True)
        except Exception:
            return []
        names = [info["name"].rstrip("/").rsplit("/", 1)[-1] for info in beside if info["type"] == "directory"]
        return [name for name in names if name != self.folder.name and is_inside_by_name(name)
                and not files.is_hidden(Path(name))]

    def _refresh_stage(self, stage: str) -> None:
        """Bring a stage that is done there to the copy, as far as this machine may read it."""
        with contextlib.suppress(StorageError), self._reached():
            if self._files.exists(f"{self._root}/{stage}/done.json"):
                with files.waited_for(self.folder / FETCHING):
                    if not files.is_locked(self.folder):
                        self._download(self._list(f"{self._root}/{stage}"))
                        _assemble_record(self.folder / stage)

    # -- from here to there -------------------------------------------------------------------------------------------

    def append(self, record: Path, line: str, sequence: int) -> None:
        """Append an event's line to a record; return once it is on the study's storage. Raises StorageError."""
        if self.uri is not None:
            self._check_lease()
            with self._reached():
                self._files.pipe_file(f"{self._on_remote(record.parent)}/{PARTS}/{sequence:08d}.json", line.encode())
            self._parts[record] = self._parts.get(record, 0) + 1
        files.append_line(record, line)
        if self._parts.get(record, 0) >= COMPACT_AFTER:
            self._compact(record)

    def _compact(self, record: Path) -> None:
        """Turn the objects of a record's events into one file. A reader who sees both takes each event once."""
        stage = self._on_remote(record.parent)
        with self._reached():
            parts = self._list(f"{stage}/{PARTS}")
            self._files.put_file(str(record), f"{stage}/{RECORD}")
            if parts:
                remove_objects(self._files, self._root, parts)
        self._parts[record] = 0

    def publish(self, *paths: Path) -> None:
        """Make files and folders there what they are here; done-marks last. Raises StorageError."""
        if self.uri is None:
            return
        self._check_lease()
        for path in paths:
            found = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()
                     ] if path.is_dir() else [path]
            found = [file for file in found if not files.is_hidden(file.relative_to(self.folder))]
            for file in sorted(found, key=lambda file: file.name == "done.json"):
                self._upload(file)
            if path.is_dir():
                self._remove_others(path, {self._on_remote(file) for file in found})
        self._keep_known()

    def _upload(self, file: Path) -> None:
        if file.name == RECORD:
            if self._parts.get(file) != 0:
                self._compact(file)
            return
        name = file.relative_to(self.folder).as_posix()
        if self._is_noted(name, file):
            return
        with self._reached():
            self._files.put_file(str(file), self._on_remote(file))
            self._note(name, self._files.info(self._on_remote(file)), file)

    def _remove_others(self, folder: Path, kept: set[str]) -> None:
        with self._reached():
            others = [name for name in self._list(self._on_remote(folder)) if f"{self._root}/{name}" not in kept]
            if others:
                remove_objects(self._files, self._root, others)
        for name in others:
            self._known.pop(name, None)

    def _check_lease(self) -> None:
        if self._lease is not None:
            with self._reached():
                self._lease.check()

    # -- Ray Tune's checkpoints ---------------------------------------------------------------------------------------

    def tune_storage(self) -> tuple[str, Any]:
        """Where Ray Tune keeps its runs: a path, and the pyarrow file system that it belongs to (None: this one)."""
        if self.uri is None:
            return str(self.folder.absolute() / TUNE), None
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return f"{self._root}/{TUNE}", PyFileSystem(FSSpecHandler(self._files))

    def tune_runs(self) -> int:
        """How many runs Tune has left in the study."""
        if self.uri is None:
            return len(list((self.folder / TUNE).glob("*")))
        with self._reached():
            return len(self._files.ls(f"{self._root}/{TUNE}", detail=False)) if self._has(TUNE) else 0

    def forget_tune(self, *below: str) -> None:
        """Remove what Tune left, all of it or what lies below. Raises ValueError where that is not below it."""
        path = "/".join((TUNE, *below))
        if not is_inside_by_name(path):
            raise ValueError(f"{path!r} is not removed: it does not lie inside {self}")
        if self.uri is None:
            remove(self.folder / path, self.folder, if_possible=True)
        elif self._has(path):
            self._check_lease()
            with self._reached():
                remove_objects(self._files, self._root, [path], recursive=True)

    def _has(self, path: str) -> bool:
        with self._reached():
            return self._files.exists(f"{self._root}/{path}")

    def relative(self, path: str) -> str:
        """A path that Tune names, relative to the study."""
        root = str(self.folder.absolute()) if self.uri is None else self._root
        return Path(path).relative_to(root).as_posix()

    def checkpoint(self, path: str, mark: str) -> str | None:
        """A checkpoint's folder or URI for a worker, by its path relative to the study; None where it lacks its mark.
        """
        if self.uri is None:
            folder = inside(self.folder.absolute(), path)
            return str(folder) if (folder / mark).exists() else None
        return f"{self.uri}/{path}" if self._has(f"{path}/{mark}") else None

    def keep(self, names: Iterable[str], checkpoint: str, target: Path) -> str:
        """Copy what counts of a checkpoint, by its path relative to the study, to `target`, here and there.

        Returns target's path relative to the study.
        """
        for name in names:
            if self.uri is None:
                if (file := inside(self.folder, f"{checkpoint}/{name}")).exists():
                    files.copy_file(file, target / name)
            elif self._has(f"{checkpoint}/{name}"):
                with self._reached(), files.written(target / name) as draft:
                    self._files.get_file(f"{self._root}/{checkpoint}/{name}", str(draft))
        self.publish(target)
        return target.absolute().relative_to(self.folder.absolute()).as_posix()


def _tag(info: dict[str, Any]) -> str:
    """What changes when an object does."""
    times = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created"))
    return f"{info.get('size')} {next((time for time in times if time is not None), '')}"


def _copies_of(parent: str) -> Path:
    """Where this machine keeps its copies of the studies below a URI."""
    return cache_folder() / "studies" / hashlib.blake2b(parent.encode(), digest_size=5).hexdigest()


def _assemble_record(stage: Path) -> None:
    """Put a record together from its base and the events since; an event that is in both counts once."""
    base = stage / BASE
    lines = base.read_text(encoding="utf-8").splitlines() if base.exists() else []
    try:
        last = int(json.loads(lines[-1])["sequence"]) if lines else -1
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{base} is damaged in its last line; restore {stage.name}/{RECORD} from a copy") from None
    parts = sorted((int(path.stem), path) for path in (stage / LOCAL_PARTS).glob("*.json")
                   if path.stem.isascii() and path.stem.isdigit())
    lines += [path.read_text(encoding="utf-8") for sequence, path in parts if sequence > last]
    content = "".join(f"{line}\n" for line in lines)
    record = stage / RECORD
    if lines and not (record.exists() and record.read_text(encoding="utf-8") == content):
        files.write_text(record, content)
