"""Resolve the STUDY argument to settings and storage, and check which of its functions and hosts the user trusts."""

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path

from kdstudy.config.load import (
    STUDY_FILE,
    load_series,
    load_study,
    preset_names,
    values_named,
)
from kdstudy.config.permission import TRAINED, Named, functions_allowed
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.series.folder import SeriesFolder, check_single
from kdstudy.stages.order import STAGE_FILES
from kdstudy.store import check
from kdstudy.store.files import read_json
from kdstudy.store.storage import Storage
from kdstudy.trainables import functions


def resolve(study: str, overrides: tuple[str, ...], location: str | None, smoke: bool, trust: bool,
             sections: tuple[str, ...] = TRAINED) -> tuple[StudyConfig, Storage]:
    """Return the settings and the storage of a study. A started study keeps its own settings unless overridden.

    Raises UserError where the study is unknown, damaged or not trusted."""
    config, storage = locate(study, overrides, location, smoke)
    allow(config, study, overrides, trust, sections)
    if location is not None:
        storage.refresh()
    check_single(storage)
    check.check(storage.folder, STAGE_FILES)
    return config, storage


def resolve_series(study: str, overrides: tuple[str, ...], location: str | None, smoke: bool, trust: bool,
                   sections: tuple[str, ...] = TRAINED) -> SeriesFolder | None:
    """Return the series that the settings describe, with its storage; None where they describe a single study.

    Raises UserError where the study is unknown, damaged or not trusted."""
    found = locate_series(study, overrides, location, smoke, refresh=location is not None)
    if found is not None:
        # The members differ in a number alone, so what one of them names all do.
        allow(found.series.members[0].config, study, overrides, trust, sections)
        found.refresh()
    return found


def locate_series(study: str, overrides: tuple[str, ...], location: str | None, smoke: bool = False,
                  refresh: bool = False) -> SeriesFolder | None:
    own, file = _own(study, location)
    series = load_series(file, overrides, smoke)
    if series is None:
        return None
    storage = _place(own, location, smoke, series.name)
    if refresh:
        storage.refresh()
    return SeriesFolder(series, storage)


def started_series(study: str, location: str | None) -> SeriesFolder | None:
    """Return the series that a folder or URI holds; None where it holds none. Raises UserError."""
    place = location or study
    if "://" not in place and not Path(place).is_dir():
        return None
    storage = Storage.of(place)
    storage.refresh()
    if (found := SeriesFolder.of(storage)) is not None:
        found.refresh()
    return found


def locate(study: str, overrides: tuple[str, ...], location: str | None,
            smoke: bool = False) -> tuple[StudyConfig, Storage]:
    own, file = _own(study, location)
    try:
        config = load_study(file, overrides, smoke)
    except UserError as error:  # which may name members of a series: those at the URI, not their copies here
        if own.uri is None:
            raise
        raise UserError(str(error).replace(file, own.uri)) from None
    return config, _place(own, location, smoke, config.name)


def _own(study: str, location: str | None) -> tuple[Storage, str]:
    """The storage that STUDY is, if it is one, and what to load the settings from. Raises UserError."""
    if "" in (study, location):
        raise UserError(f"{'--dir' if study else 'STUDY'} is empty; name a study folder, or leave it out")
    own = Storage.of(study)
    if own.uri is None:
        return own, study
    own.refresh()
    if not (own.folder / STUDY_FILE).is_file():
        raise UserError(f"{own} holds no study yet; name a preset or a TOML file, and the URI with --dir")
    return own, str(own.folder)


def _place(own: Storage, location: str | None, smoke: bool, name: str) -> Storage:
    """Where a study or a series is stored: at --dir, where it was started, or in `studies/`."""
    if location is not None:
        return Storage.of(location)
    started = (own.folder / STUDY_FILE).is_file() and not smoke
    return own if started else Storage(Path("studies") / name)


def allow(config: StudyConfig, study: str, overrides: tuple[str, ...], trust: bool, sections: tuple[str, ...],
           storage: Storage | None = None) -> None:
    """Allow calls to the functions that the user named in a TOML file, with --set, or accepted with --trust.

    sections: those of `TRAINED` that the command uses, plus `watch` if it sends curves. storage: the source of
    `config` if that is not `study`. Raises UserError where the study folder or URI, which may come from a stranger,
    names any other function or a host to contact.
    """
    named = Named()
    named.add(values_named(study, overrides))
    functions.allow(functions_allowed(config, named, storage or study, trust=trust, remedy="add --trust",
                                      sections=sections))


def _check_named(study: str) -> None:
    """Raises UserError where `study` is no URI, preset or existing path."""
    if "://" in study or study in preset_names() or Path(study).exists():
        return
    begun = _begun_like(Path("studies") / study) or _begun_like(Path(study))
    raise UserError(f"there is no study {study}; "
                    + (f"did you mean {begun}?" if begun else "name the folder of a study, or a preset"))


def _begun_like(folder: Path) -> Path | None:
    """The folder if a study in it has begun, else the begun study beside it whose name is most like its own."""
    begun = sorted(path.parent.name for path in folder.parent.glob(f"*/{STUDY_FILE}"))
    trial_run = [name for name in begun if name in (folder.name, f"{folder.name}-smoke")]
    nearest = trial_run or difflib.get_close_matches(folder.name, begun, n=1, cutoff=0.6)
    return folder.with_name(nearest[0]) if nearest else None


def resolve_started(study: str, location: str | None, overrides: tuple[str, ...] = (),
                     everything: bool = False) -> tuple[StudyConfig, Storage]:
    """Return the settings that a study was started with, and its storage.

    everything: also download weights and logits. Raises UserError where the study was not started.
    """
    _check_named(study)
    _, storage = locate(study, (), location)
    storage.refresh(everything)
    folder = storage.folder
    if not (folder / STUDY_FILE).exists():
        begun = _begun_like(folder) if storage.uri is None else None
        raise UserError(f"{storage} has not been started; `kdstudy run {study}` starts it"
                        + (f", or did you mean {begun}?" if begun else ""))
    if read_json(folder / "stages.json") is None:
        raise UserError(f"{storage}/stages.json is missing or damaged; `kdstudy run {storage}` recreates it")
    check.check(folder, STAGE_FILES)
    return load_study(str(folder), overrides), storage


def resolve_begun(study: str, location: str | None) -> Storage:
    """Return the storage of a started study, even if its driver has not written the settings yet."""
    try:
        return resolve_started(study, location)[1]
    except UserError:
        with contextlib.suppress(UserError):
            storage = Storage.of(location or (study if study not in preset_names() else Path("studies") / study))
            if not (storage.folder / "stages.json").exists() and storage.is_driven():
                return storage
        raise


@contextlib.contextmanager
def files_must_fit(storage: Storage) -> Iterator[None]:
    """Turn errors about missing or inconsistent study files into a UserError of one line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"the files of {storage} are inconsistent: {' '.join(str(error).split())}") from None
    except FileNotFoundError as error:
        if not str(error.filename).startswith(str(storage.folder)):
            raise
        raise UserError(f"{error.filename} is missing; restore it from a copy, or let `kdstudy run {storage}` "
                        "recreate it") from None
