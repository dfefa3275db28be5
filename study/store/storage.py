"""Where a study is stored: in a folder, or at a URI of an object store with a local copy.

All reads go to the folder. With a URI, `refresh` downloads changes into the local copy, and `append` and `publish`
upload what was written. Object stores cannot append, so a record is stored as one object per event until `publish`
merges the events into one file.

    URI/STAGE/record.jsonl                 the record as of the last `publish`
    URI/STAGE/record.parts/00000123.json   one later event, named after its sequence number
    URI/.tune/...                          Ray Tune's checkpoints, which have no local copy
    URI/.lease                             which driver runs the study
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kdstudy.errors import StorageError, UserError
from kdstudy.store import files
from kdstudy.store.lease import Lease
from kdstudy.store.object_store import BASE, KNOWN, LOCAL_PARTS, PACKAGES, PARTS, RECORD, ObjectStore
from kdstudy.trainables.credentials import problem_with, redact
from kdstudy.trainables.paths import MAGIC, inside, is_inside_by_name, remove, remove_objects

FETCHING = ".fetching"  # lock held while the local copy is updated
TUNE = ".tune"
COMPACT_AFTER = 500  # events; limits how many objects a reader has to download
NEEDED_TO_READ = (".toml", ".json", ".jsonl", ".parquet", ".csv", ".md")
WRITTEN_HERE = ("train", "tensorboard", "wandb")  # local extras that are published late or never


class Storage:
    """A study's folder and, if it has one, its URI.

    folder: the study folder or, for a URI, the local copy of it.
    """

    def __init__(self, folder: Path, uri: str | None = None):
        self.folder, self.uri = folder, uri
        self._lease: Lease | None = None
        self._parts: dict[Path, int] = {}  # per record, how many events are stored as separate objects

    @cached_property
    def _remote(self) -> ObjectStore:
        return ObjectStore(self.folder, self.uri)

    @classmethod
    def of(cls, location: "str | Path | Storage") -> "Storage":
        """Return the storage for a path or URI. A local copy's path resolves to the URI that it is a copy of.

        Raises UserError where `location` is neither a folder nor a supported URI, or contains credentials."""
        if isinstance(location, Storage):
            return location
        text = str(location)
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
            # Trust only copies that this machine made: a folder from someone else may name any URI.
            return copy if copy and copy.folder.resolve() == Path(text).resolve() else cls(Path(text))
        if text.startswith("file://"):
            try:
                return cls(Path(unquote(urlsplit(text).path)))
            except ValueError as error:
                raise UserError(f"{text} is not a URI: {error}") from None
        if text.startswith("memory://"):
            raise UserError(f"{text} vanishes when the command ends; name a folder, or a URI such as "
                            "s3://bucket/studies/mine")
        uri = text.rstrip("/")
        parent, _, name = uri.rpartition("/")
        if not parent or parent.endswith((":/", ":")) or name in (".", ".."):
            raise UserError(f"{text} names no folder; add one, as in {uri}/studies/mine")
        if MAGIC & set(uri):
            raise UserError(f"{text} is a pattern; name one folder, without any of * ? [ ] {{ }}")
        return cls(_copies_of(parent) / name, uri)

    def __str__(self) -> str:
        return self.uri or str(self.folder)

    # -- one driver at a time -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def driven(self) -> Iterator[None]:
        """Hold the study's lock, of which there is one for all drivers.

        Raises UserError that names the other driver where the study is already running."""
        with contextlib.ExitStack() as held:
            held.enter_context(files.StudyLock(self.folder, str(self)))
            if self.uri is not None:
                remote = self._remote
                with remote.reached(UserError):
                    self._lease = held.enter_context(Lease(remote.system, f"{remote.root}/.lease", str(self)))
                with files.waited_for(self.folder / FETCHING):
                    self._fetch(everything=True)
            yield

    def is_driven(self) -> bool:
        """Whether a driver is running the study now."""
        return self.driver() is not None

    def driver(self) -> str | None:
        """The driver that is running the study now, as "process 7 on host", or None."""
        if files.is_locked(self.folder):
            return files.lock_owner(self.folder)
        if self.uri is None:
            return None
        with self._remote.reached(UserError):
            return Lease.holder(self._remote.system, f"{self._remote.root}/.lease")

    # -- download -----------------------------------------------------------------------------------------------------

    def refresh(self, everything: bool = False) -> None:
        """Update the local copy for a reader, unless a driver on this machine already keeps it up to date.

        everything: also download weights and logits. Raises UserError where the URI cannot be read.
        """
        if self.uri is None:
            return
        with files.waited_for(self.folder / FETCHING):
            if not files.is_locked(self.folder):
                self._fetch(everything)

    def bring(self, *names: str) -> None:
        """Download everything in the named subfolders of the study. Raises UserError where the URI cannot be read."""
        if self.uri is None:
            return
        with files.waited_for(self.folder / FETCHING), self._remote.reached(UserError):
            if not files.is_locked(self.folder):
                for name in names:
                    self._remote.download(self._remote.objects_below(f"{self._remote.root}/{name}"))

    def _fetch(self, everything: bool) -> None:
        with self._remote.reached(UserError):
            try:
                found = self._download_wanted(everything)
            except FileNotFoundError:  # another driver has merged a record's events in the meantime
                found = self._download_wanted(everything)
        self._forget_what_is_gone(set(found))
        for stage in {path.parent for pattern in (BASE, LOCAL_PARTS) for path in self.folder.glob(f"*/{pattern}")}:
            _assemble_record(stage)

    def _download_wanted(self, everything: bool) -> dict[str, dict[str, Any]]:
        found = self._remote.all_objects()
        self._remote.download({name: info for name, info in found.items()
                               if everything or name.endswith(NEEDED_TO_READ)})
        return found

    def _forget_what_is_gone(self, found: set[str]) -> None:
        """Remove local files that are no longer in the store. Files that were never uploaded may be in progress: only
        the driver removes those, except for the local extras."""
        kept = {self._remote.local(name) for name in found}
        kept |= {self._remote.local(name).with_name(RECORD) for name in found if name.endswith(f"/{RECORD}")}
        kept |= {self.folder / Path(name).parent.parent / RECORD for name in found if f"/{PARTS}/" in name}
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder)
            ours = not files.is_hidden(inside) or path.name == BASE or path.parent.name == LOCAL_PARTS
            result = path.name != RECORD and not files.is_hidden(inside)
            progress = inside.parts[0] in WRITTEN_HERE if self._lease else result
            if not path.is_file() or not ours or path in kept:
                continue
            if not progress or inside.as_posix() in self._remote.known:
                remove(path, self.folder)
        self._remote.forget(found)

    def neighbours(self, stage: str) -> list[Path]:
        """Return the folders of a finished stage in sibling studies, after updating their local copies."""
        for name in self._siblings:
            Storage(self.folder.parent / name, f"{self.uri.rsplit('/', 1)[0]}/{name}")._refresh_stage(stage)
        return [path for path in sorted(self.folder.parent.glob(f"*/{stage}")) if path.parent != self.folder]

    @cached_property
    def _siblings(self) -> list[str]:
        """List the entries next to this study at its URI, as far as permissions allow."""
        if self.uri is None:
            return []
        try:
            beside = self._remote.system.ls(self._remote.root.rsplit("/", 1)[0], detail=True)
        except Exception:
            return []
        names = [info["name"].rstrip("/").rsplit("/", 1)[-1] for info in beside if info["type"] == "directory"]
        return [name for name in names if name != self.folder.name and is_inside_by_name(name)
                and not files.is_hidden(Path(name))]

    def _refresh_stage(self, stage: str) -> None:
        """Download a stage that is finished at the URI, as far as permissions allow."""
        with contextlib.suppress(StorageError), self._remote.reached():
            if self._remote.system.exists(f"{self._remote.root}/{stage}/done.json"):
                with files.waited_for(self.folder / FETCHING):
                    if not files.is_locked(self.folder):
                        self._remote.download(self._remote.objects_below(f"{self._remote.root}/{stage}"))
                        _assemble_record(self.folder / stage)

    # -- upload -------------------------------------------------------------------------------------------------------

    def append(self, record: Path, line: str, sequence: int) -> None:
        """Append one event (a JSON line) to a record and return once it is durable. Raises StorageError."""
        if self.uri is not None:
            self._check_lease()
            part = f"{self._remote.on_remote(record.parent)}/{PARTS}/{sequence:08d}.json"
            with self._remote.reached():
                self._remote.system.pipe_file(part, line.encode())
            self._parts[record] = self._parts.get(record, 0) + 1
        files.append_line(record, line)
        if self._parts.get(record, 0) >= COMPACT_AFTER:
            self._compact(record)

    def _compact(self, record: Path) -> None:
        """Merge the objects of a record's events into one file. Readers that see both count each event once."""
        stage = self._remote.on_remote(record.parent)
        with self._remote.reached():
            parts = self._remote.objects_below(f"{stage}/{PARTS}")
            self._remote.system.put_file(str(record), f"{stage}/{RECORD}")
            if parts:
                remove_objects(self._remote.system, self._remote.root, parts)
        self._parts[record] = 0

    def publish(self, *paths: Path) -> None:
        """Upload files and folders, done-marks last, and delete remote files that are gone. Raises StorageError."""
        if self.uri is None:
            return
        self._check_lease()
        for path in paths:
            found = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()
                     ] if path.is_dir() else [path]
            found = [file for file in found if not files.is_hidden(file.relative_to(self.folder))]
            for file in sorted(found, key=lambda file: file.name == "done.json"):
                if file.name != RECORD:
                    self._remote.upload(file)
                elif self._parts.get(file) != 0:
                    self._compact(file)
            if path.is_dir():
                self._remote.remove_others(path, {self._remote.on_remote(file) for file in found})
        self._remote.keep_known()

    def _check_lease(self) -> None:
        if self._lease is not None:
            with self._remote.reached():
                self._lease.check()

    # -- Ray Tune's checkpoints ---------------------------------------------------------------------------------------

    def tune_storage(self) -> tuple[str, Any]:
        """Return where Ray Tune stores its runs: a path and a pyarrow file system (None for the local one)."""
        if self.uri is None:
            return str(self.folder.absolute() / TUNE), None
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return f"{self._remote.root}/{TUNE}", PyFileSystem(FSSpecHandler(self._remote.system))

    def tune_runs(self) -> int:
        """The number of Ray Tune runs in the study so far."""
        if self.uri is None:
            return len(list((self.folder / TUNE).glob("*")))
        if not self._remote.has(TUNE):
            return 0
        with self._remote.reached():
            return len(self._remote.system.ls(f"{self._remote.root}/{TUNE}", detail=False))

    def forget_tune(self, *below: str) -> None:
        """Remove Ray Tune's files, or only the part at the path `below`. Raises ValueError where the path leaves them.
        """
        path = "/".join((TUNE, *below))
        if not is_inside_by_name(path):
            raise ValueError(f"{path!r} is not removed: it is not inside {self}")
        if self.uri is None:
            remove(self.folder / path, self.folder, if_possible=True)
        elif self._remote.has(path):
            self._check_lease()
            with self._remote.reached():
                remove_objects(self._remote.system, self._remote.root, [path], recursive=True)

    def relative(self, path: str) -> str:
        """Convert a path from Ray Tune to one relative to the study."""
        root = str(self.folder.absolute()) if self.uri is None else self._remote.root
        return Path(path).relative_to(root).as_posix()

    def checkpoint(self, path: str, mark: str) -> str | None:
        """Return a checkpoint's folder or URI for a worker, or None if it lacks the file `mark`.

        path: relative to the study."""
        if self.uri is None:
            folder = inside(self.folder.absolute(), path)
            return str(folder) if (folder / mark).exists() else None
        return f"{self.uri}/{path}" if self._remote.has(f"{path}/{mark}") else None

    def keep(self, names: Iterable[str], checkpoint: str, target: Path) -> str:
        """Copy the named files of a checkpoint to `target`, locally and at the URI.

        checkpoint: path relative to the study. Returns target's path relative to the study.
        """
        for name in names:
            if self.uri is None:
                if (file := inside(self.folder, f"{checkpoint}/{name}")).exists():
                    files.copy_file(file, target / name)
            elif self._remote.has(f"{checkpoint}/{name}"):
                with self._remote.reached(), files.written(target / name) as draft:
                    self._remote.system.get_file(f"{self._remote.root}/{checkpoint}/{name}", str(draft))
        self.publish(target)
        return target.absolute().relative_to(self.folder.absolute()).as_posix()


def _copies_of(parent: str) -> Path:
    """The local folder for copies of the studies below a URI."""
    from kdstudy.trainables.paths import cache_folder

    return cache_folder() / "studies" / hashlib.blake2b(parent.encode(), digest_size=5).hexdigest()


def _assemble_record(stage: Path) -> None:
    """Rebuild a record from its base file and its later events, counting each event once."""
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
