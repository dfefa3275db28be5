"""Resolve the STUDY argument to settings and storage, and check which of its functions and hosts the user trusts."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kdstudy.config.load import (
    STUDY_FILE,
    load_study,
    preset_names,
    values_named,
)
from kdstudy.config.permission import TRAINED, Named, functions_allowed
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
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
    check.check(storage.folder, STAGE_FILES)
    return config, storage


def locate(study: str, overrides: tuple[str, ...], location: str | None,
            smoke: bool = False) -> tuple[StudyConfig, Storage]:
    if "" in (study, location):
        raise UserError(f"{'--dir' if study else 'STUDY'} is empty; name a study folder, or leave it out")
    own = Storage.of(study)
    if own.uri is not None:
        own.refresh()
        if not (own.folder / STUDY_FILE).is_file():
            raise UserError(f"{own} holds no study yet; name a preset or a TOML file, and the URI with --dir")
        study = str(own.folder)
    config = load_study(study, overrides, smoke)
    if location is not None:
        return config, Storage.of(location)
    started = (own.folder / STUDY_FILE).is_file() and not smoke
    return config, own if started else Storage(Path("studies") / config.name)


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
    begun = Path("studies") / study
    hint = f"did you mean {begun}?" if (begun / STUDY_FILE).is_file() else "name the folder of a study, or a preset"
    raise UserError(f"there is no study {study}; {hint}")


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
        raise UserError(f"{storage} has not been started; `kdstudy run {study}` starts it")
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
