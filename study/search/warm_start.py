"""A warm start: a search that begins with what another study's search has found in the same space.

The other's finished trials are read once and kept in the search's own record, so that nobody who goes on with it needs
the other study. TPE is told of them, but they are not trials of this study: they have no number, enter no rung, and
cannot win.
"""

import os
from pathlib import Path
from typing import Any

from kdstudy.analysis.study_files import ARMS, StudyFiles
from kdstudy.config.load import STUDY_FILE, load_study
from kdstudy.config.settings import Range, StudyConfig
from kdstudy.errors import UserError
from kdstudy.search.runs import accuracies
from kdstudy.store import check as schema
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage


def read_prior(config: StudyConfig, arm: str, own: Path) -> list[dict[str, Any]]:
    """The finished trials of an arm of the study at search.warm_start, as `Record.add_prior` takes them.

    Those outside the ranges of `config` are left out. Accuracies after its last epoch are too, and a trial that did not
    come so far counts as stopped. `own` is the folder of the study that starts.

    Raises UserError where that is no other study, searched another space, or has no such trial.
    """
    place = config.search.warm_start
    other = _other_study(place, own)
    space = config.space(arm)
    try:
        schema.check(other)
        theirs = load_study(str(other)).space(arm)
    except UserError as error:
        raise UserError(f"search.warm_start = {place!r}: {error}") from None
    if _kinds(theirs) != _kinds(space):
        raise UserError(f"search.warm_start: the {ARMS[arm]} search of {place} has {_show(theirs)}, this study's has "
                        f"{_show(space)}; names, scales and choices must be the same")
    stage = StudyFiles(other).stage(arm)
    trials = Record(stage / "record.jsonl", write=False).trials.values() if stage else ()
    prior = [known for trial in trials if (known := _known(trial, space, config.train.epochs))]
    if all(known["state"] == "failed" for known in prior):
        raise UserError(f"search.warm_start: {place} has no finished {ARMS[arm]} trial within the ranges of this "
                        "study; name a study that has, or leave search.warm_start out")
    return prior


def _other_study(place: str, own: Path) -> Path:
    """The folder of another study, brought up to date."""
    storage = Storage.of(place if "://" in place else os.path.expanduser(place))
    if storage.folder.resolve() == own.resolve():
        raise UserError(f"search.warm_start = {place!r} is this study itself; a larger search.trials goes on with it")
    storage.refresh()
    if not (storage.folder / STUDY_FILE).is_file():
        raise UserError(f"search.warm_start = {place!r} is not a study's folder: there is no {STUDY_FILE} in it")
    return storage.folder


def _known(trial: TrialState, space: dict[str, Range], epochs: int) -> dict[str, Any] | None:
    """What is kept of a trial; None where it is still to end, lies outside the space or has reported nothing."""
    parameters = {name: trial.parameters[name] for name in space}
    values = [(epoch, value) for epoch, value in accuracies(trial).items() if epoch <= epochs]
    if trial.state == "running" or not all(space[name].contains(value) for name, value in parameters.items()):
        return None
    if trial.state != "failed" and not values:
        return None
    state = "failed" if trial.state == "failed" else "complete" if values[-1][0] == epochs else "stopped"
    return {"parameters": parameters, "accuracies": values, "state": state}


def _kinds(space: dict[str, Range]) -> dict[str, Any]:
    """What must be the same: each parameter's scale, or its choices."""
    return {name: frozenset(dimension.choice) if dimension.choice else "log" if dimension.log else "linear"
            for name, dimension in space.items()}


def _show(space: dict[str, Range]) -> str:
    shown = [f"{name} ({', '.join(map(str, dimension.choice)) if dimension.choice else kind})"
             for (name, dimension), kind in zip(space.items(), _kinds(space).values(), strict=True)]
    return ", ".join(shown) or "nothing"
