"""Where a study is stored: a folder, or a URI of an object store with a copy of it on this machine.

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

FETCHING = ".fetching"  # a lock, held while the copy is brought up to date
TUNE = ".tune"
COMPACT_AFTER = 500  # events, so that a reader does not have to fetch thousands of objects
NEEDED_TO_READ = (".toml", ".json", ".jsonl", ".parquet", ".csv", ".md")
WRITTEN_HERE = ("train", "tensorboard", "wandb")  # beside the study's own files, and published late or never


class Storage:
    """A study's folder and, if it has one, its URI.

    folder: of the study, or of this machine's copy of it.
    """

    def __init__(self, folder: Path, uri: str | None = None):
        self.folder, self.uri = folder, uri
        self._lease: Lease | None = None
        self._parts: dict[Path, int] = {}  # events that lie as objects of their own, by record

    @cached_property
    def _remote(self) -> ObjectStore:
        return ObjectStore(self.folder, self.uri)

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
                remote = self._remote
                with remote.reached(UserError):
                    self._lease = held.enter_context(Lease(remote.system, f"{remote.root}/.lease", str(self)))
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
        with self._remote.reached(UserError):
            return Lease.holder(self._remote.system, f"{self._remote.root}/.lease")

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
        with files.waited_for(self.folder / FETCHING), self._remote.reached(UserError):
            if not files.is_locked(self.folder):
                for name in names:
                    self._remote.download(self._remote.objects_below(f"{self._remote.root}/{name}"))

    def _fetch(self, everything: bool) -> None:
        with self._remote.reached(UserError):
            try:
                found = self._download_wanted(everything)
            except FileNotFoundError:  # a driver elsewhere has made one file of a record's events meanwhile
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
        """Remove what is not in the store. A file that never was there may be work in progress: only the driver removes
        it, but for what is made beside the study's own files."""
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
            beside = self._remote.system.ls(self._remote.root.rsplit("/", 1)[0], detail=True)
        except Exception:
            return []
        names = [info["name"].rstrip("/").rsplit("/", 1)[-1] for info in beside if info["type"] == "directory"]
        return [name for name in names if name != self.folder.name and is_inside_by_name(name)
                and not files.is_hidden(Path(name))]

    def _refresh_stage(self, stage: str) -> None:
        """Bring a stage that is done there to the copy, as far as this machine may read it."""
        with contextlib.suppress(StorageError), self._remote.reached():
            if self._remote.system.exists(f"{self._remote.root}/{stage}/done.json"):
                with files.waited_for(self.folder / FETCHING):
                    if not files.is_locked(self.folder):
                        self._remote.download(self._remote.objects_below(f"{self._remote.root}/{stage}"))
                        _assemble_record(self.folder / stage)

    # -- from here to there -------------------------------------------------------------------------------------------

    def append(self, record: Path, line: str, sequence: int) -> None:
        """Append an event's line to a record; return once it is on the study's storage. Raises StorageError."""
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
        """Turn the objects of a record's events into one file. A reader who sees both takes each event once."""
        stage = self._remote.on_remote(record.parent)
        with self._remote.reached():
            parts = self._remote.objects_below(f"{stage}/{PARTS}")
            self._remote.system.put_file(str(record), f"{stage}/{RECORD}")
            if parts:
                remove_objects(self._remote.system, self._remote.root, parts)
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
        """Where Ray Tune keeps its runs: a path, and the pyarrow file system that it belongs to (None: this one)."""
        if self.uri is None:
            return str(self.folder.absolute() / TUNE), None
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return f"{self._remote.root}/{TUNE}", PyFileSystem(FSSpecHandler(self._remote.system))

    def tune_runs(self) -> int:
        """How many runs Tune has left in the study."""
        if self.uri is None:
            return len(list((self.folder / TUNE).glob("*")))
        if not self._remote.has(TUNE):
            return 0
        with self._remote.reached():
            return len(self._remote.system.ls(f"{self._remote.root}/{TUNE}", detail=False))

    def forget_tune(self, *below: str) -> None:
        """Remove what Tune left, all of it or what lies below. Raises ValueError where that is not below it."""
        path = "/".join((TUNE, *below))
        if not is_inside_by_name(path):
            raise ValueError(f"{path!r} is not removed: it does not lie inside {self}")
        if self.uri is None:
            remove(self.folder / path, self.folder, if_possible=True)
        elif self._remote.has(path):
            self._check_lease()
            with self._remote.reached():
                remove_objects(self._remote.system, self._remote.root, [path], recursive=True)

    def relative(self, path: str) -> str:
        """A path that Tune names, relative to the study."""
        root = str(self.folder.absolute()) if self.uri is None else self._remote.root
        return Path(path).relative_to(root).as_posix()

    def checkpoint(self, path: str, mark: str) -> str | None:
        """A checkpoint's folder or URI for a worker, by its path relative to the study; None where it lacks its mark.
        """
        if self.uri is None:
            folder = inside(self.folder.absolute(), path)
            return str(folder) if (folder / mark).exists() else None
        return f"{self.uri}/{path}" if self._remote.has(f"{path}/{mark}") else None

    def keep(self, names: Iterable[str], checkpoint: str, target: Path) -> str:
        """Copy what counts of a checkpoint, by its path relative to the study, to `target`, here and there.

        Returns target's path relative to the study.
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
    """Where this machine keeps its copies of the studies below a URI."""
    from kdstudy.trainables.paths import cache_folder

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
