"""Validate a study's files before use, since they may come from another machine or from a stranger."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdstudy.analysis.stage_names import kind_of
from kdstudy.config.wording import location_of, wording
from kdstudy.errors import UserError
from kdstudy.store.files import digest_of, is_json, read_json
from kdstudy.store.schema import (
    EVENTS,
    Decided,
    Description,
    Done,
    Event,
    OfTrial,
    Part,
    Report,
    Session,
    StageFiles,
    Trial,
)
from kdstudy.trainables.paths import not_plain

WRITTEN_BY_OTHERS = ("wandb",)  # contains symbolic links; kdstudy reads nothing from it


def check(folder: Path, stages: Mapping[str, StageFiles]) -> None:
    """Check the files of a started study. Missing and half-written files are no error.

    stages: the expected files of each kind of stage, by its name.

    Raises UserError with one line that names the first damaged file.
    """
    check_plain(folder, WRITTEN_BY_OTHERS)
    description = _checked(folder / "stages.json", Description)
    for name, stage in description.stages.items() if description else ():
        if stage.rpartition("-")[0] != name:
            raise _damaged(folder / "stages.json", f"stages.{name} is the folder of another stage")
    # Also check stages of other settings: they are reused if the study returns to these settings.
    for stage in sorted(folder.glob("*-*")):
        name = stage.name.rpartition("-")[0]
        if (kind := kind_of(name)) in stages and stage.is_dir():
            _check_stage(name, stage, stages[kind])


def check_plain(folder: Path, apart: tuple[str, ...] = ()) -> None:
    """Raises UserError where a folder contains links or special files. Entries named in `apart` are skipped."""
    if (found := not_plain(folder, apart)) is not None:
        raise _refused(found)


def check_stage(name: str, folder: Path, expected: StageFiles) -> None:
    """Check one stage's folder, which may belong to another study. Raises UserError."""
    if folder.is_symlink():
        raise _refused(folder)
    check_plain(folder)
    _check_stage(name, folder, expected)


def _refused(found: Path) -> UserError:
    return UserError(f"{found} is {'a link' if found.is_symlink() else 'not a plain file'}, which a study may not "
                     "contain; remove it, or replace it with a plain file")


def _check_stage(name: str, folder: Path, expected: StageFiles) -> None:
    # Read the done-mark before the record: a running driver may finish the stage in between.
    done = _checked(folder / "done.json", expected.done)
    record = folder / "record.jsonl"
    if not record.is_file():
        if done and done.record:
            raise _spoilt(record, "it is missing")
        return
    content = record.read_bytes()
    if done and done.record and digest_of(content, done.record.lines) != done.record.digest:
        lines = content.count(b"\n")
        raise _spoilt(record, f"it has {lines} lines, but had {done.record.lines} when its stage was done"
                      if lines < done.record.lines else "it has changed since its stage was done")
    trials = _RecordCheck(name, record, expected, bool(done)).check(content)
    if done:
        _check_together(folder / "done.json", done, trials)


def _check_together(path: Path, done: Done, trials: dict[int, float | None]) -> None:
    """Check that a done-mark is consistent with the trials of its record. Raises UserError."""
    if not trials:
        return
    if missing := done.trials_named() - trials.keys():
        raise _damaged(path, f"the record has no trial {min(missing)}")
    if len(trials) < done.run_count():
        raise _damaged(path, f"it lists {done.run_count()} trials, the record {len(trials)}")
    for trial, said in done.accuracies_named().items():
        if trials[trial] is None or not math.isclose(trials[trial], said, abs_tol=1e-9):
            raise _damaged(path, f"it says that trial {trial} reached {said:g}, the record {trials[trial]}")


def _checked(path: Path, kind: type[Part]) -> Any | None:
    content = read_json(path)
    if content is None:
        return None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _damaged(path, _why(error)) from None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; restore it from a copy, or remove it and let `kdstudy run` "
                     "recreate it")


def _spoilt(record: Path, why: str) -> UserError:
    """The error for a damaged record of a finished stage, which can only be repaired by rerunning the whole stage."""
    return UserError(f"{record} is damaged: {why}; restore it from a copy or from its sender, or remove "
                     f"{_again(record)}")


def _again(record: Path) -> str:
    return f"{record.parent} and let `kdstudy run` do that stage again"


class _MisplacedError(Exception):
    """An event does not fit the events before it; the message says why."""


class _RecordCheck:
    """Reads a record line by line and checks each event against the events before it."""

    def __init__(self, stage: str, path: Path, expected: StageFiles, done: bool):
        self._stage, self._path, self._expected, self._done = stage, path, expected, done
        self._trials: dict[int, float | None] = {}  # last validation accuracy of each trial
        # The accuracies of the reports so far, without failures, by (trial, epoch)
        self._seen: dict[tuple[int, int], float | None] = {}
        self._begun: dict[int, Trial] = {}
        self._decided: dict[int, Decided] = {}  # the last decision on each trial
        self._most_epochs, self._rungs = 0, None
        self._in_virtual_time: bool | None = None  # whether trials say when they began there; None before the first

    def check(self, content: bytes) -> dict[int, float | None]:
        """Return the last validation accuracy (0 to 1) of each trial. The last line may be half written.

        Raises UserError where a line is invalid or does not fit the lines before it.
        """
        lines = [line for line in content.split(b"\n") if line]
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                checked = EVENTS.get(event["event"], Event).model_validate(event)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if number == len(lines) and not is_json(line):
                    break
                raise self._damaged(number, _why(error)) from None
            try:
                self._take(checked, number)
            except _MisplacedError as why:
                raise self._damaged(number, str(why)) from None
        return self._trials

    def _take(self, event: Event, number: int) -> None:
        if event.sequence != number - 1:
            raise _MisplacedError(f"its sequence is {event.sequence}, not {number - 1}")
        if isinstance(event, Session):
            self._most_epochs = max(self._most_epochs, event.epochs or 0)
            self._rungs = self._rungs if event.rungs is None else event.rungs
        elif isinstance(event, Trial):
            self._begin(event)
        elif isinstance(event, OfTrial) and event.trial not in self._trials:
            raise _MisplacedError(f"there is no trial {event.trial} before it")
        elif isinstance(event, Report):
            self._report(event)
        elif isinstance(event, Decided):
            self._decide(event)

    def _begin(self, trial: Trial) -> None:
        if trial.trial in self._trials:
            raise _MisplacedError(f"trial {trial.trial} begins a second time")
        if not self._expected.has(trial):
            raise _MisplacedError(f"its trial does not belong to {self._stage}")
        if self._in_virtual_time not in (None, trial.start is not None):
            raise _MisplacedError("only some trials say when they began in virtual time")
        self._trials[trial.trial], self._begun[trial.trial] = None, trial
        self._in_virtual_time = trial.start is not None

    def _report(self, report: Report) -> None:
        if self._most_epochs and report.epoch > self._most_epochs:
            raise _MisplacedError(f"epoch {report.epoch} is beyond the last, {self._most_epochs}")
        if report.trial in self._decided and self._decided[report.trial].decision == "stop":
            raise _MisplacedError(f"trial {report.trial} reports after it was stopped")
        if report.decision == "failed":  # may repeat an epoch that was already reported
            return
        if (report.trial, report.epoch) in self._seen:
            raise _MisplacedError(f"trial {report.trial} reports epoch {report.epoch} again")
        self._trials[report.trial] = self._seen[report.trial, report.epoch] = report.metrics.validation_accuracy

    def _decide(self, decided: Decided) -> None:
        if (decided.trial, decided.epoch) not in self._seen:
            raise _MisplacedError(f"there is no report of trial {decided.trial} at epoch {decided.epoch} before it")
        trial, last = self._begun[decided.trial], self._decided.get(decided.trial)
        if last and (decided.epoch <= last.epoch or last.decision != "continue"):
            raise _MisplacedError(f"trial {decided.trial} was decided on before, at epoch {last.epoch}")
        if trial.start is None or (decided.decision == "stop" and trial.protected):
            raise _MisplacedError(f"trial {decided.trial} cannot be decided on so")
        if self._rungs is not None and (decided.epoch in self._rungs) == (decided.decision == "complete"):
            raise _MisplacedError(f"epoch {decided.epoch} is not where a trial can {decided.decision}")
        self._decided[decided.trial] = decided
        if decided.decision == "stop":
            self._trials[decided.trial] = self._seen[decided.trial, decided.epoch]

    def _damaged(self, line: int, why: str) -> UserError:
        gone = _again(self._path) if self._done else "that line and those after it, to run that part again"
        return UserError(f"{self._path} is damaged at line {line}: {why}; restore it from a copy, or remove {gone}")


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(location_of(problem))} {wording([problem])}".strip()
    return "it is not an event"
