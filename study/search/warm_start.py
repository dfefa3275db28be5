"""Warm start: begin a search with another study's results in the same search space.

The other study's finished trials are copied into the search's own record, so resuming does not need that study. TPE
sees them, but they are not trials of this study: they have no number, enter no rung and cannot win.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdstudy.config.load import STUDY_FILE, load_study
from kdstudy.config.sections import ARMS, Range
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.search.runs import accuracies
from kdstudy.store.files import read_json
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage


def read_prior(config: StudyConfig, arm: str, own: Path, check: Callable[[Path], None]) -> list[dict[str, Any]]:
    """Read an arm's finished trials from the study at search.warm_start, in the format of `Record.add_prior`.

    Trials outside the ranges of `config` are skipped. Accuracies beyond its last epoch are dropped, and trials that
    did not reach that epoch count as stopped.

    own: the folder of the new study. check: validates a study folder; raises UserError.

    Raises UserError if search.warm_start is not another study, has a different search space or no usable trials.
    """
    location = config.search.warm_start
    other = _other_study(location, own)
    space = config.space(arm)
    try:
        check(other)
        theirs = load_study(str(other)).space(arm)
    except UserError as error:
        raise UserError(f"search.warm_start = {location!r}: {error}") from None
    if _kinds(theirs) != _kinds(space):
        raise UserError(f"search.warm_start: the {ARMS[arm]} search of {location} has {_show(theirs)}, this study's "
                        f"has {_show(space)}; names, scales and choices must be the same")
    stage = ((read_json(other / "stages.json") or {}).get("stages") or {}).get(arm)
    trials = Record(other / stage / "record.jsonl", write=False).trials.values() if stage else ()
    prior = [known for trial in trials if (known := _known(trial, space, config.train.epochs))]
    if all(known["state"] == "failed" for known in prior):
        raise UserError(f"search.warm_start: {location} has no finished {ARMS[arm]} trial within the ranges of this "
                        "study; name one that has, or remove search.warm_start")
    return prior


def _other_study(location: str, own: Path) -> Path:
    """Return the folder of another study, with the local copy updated."""
    storage = Storage.of(location if "://" in location else os.path.expanduser(location))
    if storage.folder.resolve() == own.resolve():
        raise UserError(f"search.warm_start = {location!r} is this study itself; to extend it, raise search.trials")
    storage.refresh()
    if not (storage.folder / STUDY_FILE).is_file():
        raise UserError(f"search.warm_start = {location!r} is not a study folder: it has no {STUDY_FILE}")
    return storage.folder


def _known(trial: TrialState, space: dict[str, Range], epochs: int) -> dict[str, Any] | None:
    """Convert a trial to a prior. None if it is unfinished, outside the space or has no reports."""
    parameters = {name: trial.parameters[name] for name in space if name in trial.parameters}
    values = [(epoch, value) for epoch, value in accuracies(trial).items() if epoch <= epochs]
    if trial.state == "running" or not all(space[name].contains(value) for name, value in parameters.items()):
        return None
    if trial.state != "failed" and not values:
        return None
    state = "failed" if trial.state == "failed" else "complete" if values[-1][0] == epochs else "stopped"
    return {"parameters": parameters, "accuracies": values, "state": state}


def _kinds(space: dict[str, Range]) -> dict[str, Any]:
    """Return what two search spaces must share: each parameter's scale or choices."""
    return {name: frozenset(dimension.choice) if dimension.choice else "log" if dimension.log else "linear"
            for name, dimension in space.items()}


def _show(space: dict[str, Range]) -> str:
    shown = [f"{name} ({', '.join(map(str, dimension.choice)) if dimension.choice else kind})"
             for (name, dimension), kind in zip(space.items(), _kinds(space).values(), strict=True)]
    return ", ".join(shown) or "nothing"
