"""What the files of a study must look like. They may come from another machine, or from somebody else."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdstudy.config.wording import location_of, wording
from kdstudy.errors import UserError
from kdstudy.store.files import digest_of, read_json
from kdstudy.store.schema import (
    DONE,
    EVENTS,
    ORIGINS,
    Confirmation,
    Description,
    Done,
    Event,
    Finalists,
    Part,
    Report,
    Search,
    Session,
    Trial,
)
from kdstudy.trainables.paths import not_plain

WRITTEN_BY_OTHERS = ("wandb",)  # with links to places of its own; nothing of it is read


def check(folder: Path) -> None:
    """See whether the files of a started study are what they must be; what is missing or half written is no damage.

    Raises UserError with one line that names the first file that is damaged.
    """
    check_plain(folder, WRITTEN_BY_OTHERS)
    description = _checked(folder / "stages.json", Description)
    for name, stage in description.stages.items() if description else ():
        if stage.rpartition("-")[0] != name:
            raise _damaged(folder / "stages.json", f"stages.{name} is the folder of another stage")
    # Also those of other settings: with these settings again, they go on.
    for stage in sorted(folder.glob("*-*")):
        if (name := stage.name.rpartition("-")[0]) in DONE and stage.is_dir():
            _check_stage(name, stage)


def check_plain(folder: Path, apart: tuple[str, ...] = ()) -> None:
    """See whether a folder holds files and folders alone, but for some of the folders in it. Raises UserError."""
    if (found := not_plain(folder, apart)) is not None:
        raise _refused(found)


def check_stage(name: str, folder: Path) -> None:
    """Likewise for one stage's folder, which may lie in another study. Raises UserError."""
    if folder.is_symlink():
        raise _refused(folder)
    check_plain(folder)
    _check_stage(name, folder)


def _refused(found: Path) -> UserError:
    return UserError(f"{found} is {'a link' if found.is_symlink() else 'no plain file'}, and a study holds none; "
                     "remove it, or replace it with a copy of its own")


def _check_stage(name: str, folder: Path) -> None:
    # The done-mark first: a driver that is at work may finish the stage between the two.
    done = _checked(folder / "done.json", DONE[name]) if name in DONE else None
    record = folder / "record.jsonl"
    if not record.is_file():
        if done and done.record:
            raise _spoilt(record, "it is missing")
        return
    content = record.read_bytes()
    if done and done.record and digest_of(content, done.record.lines) != done.record.digest:
        lines = content.count(b"\n")
        raise _spoilt(record, f"it has {lines} lines, but had {done.record.lines} when its stage was done"
                      if lines < done.record.lines else "it is not what it was when its stage was done")
    trials = _check_lines(name, record, content, bool(done))
    if done:
        _check_together(name, folder / "done.json", done, trials)


def _check_together(stage: str, path: Path, done: Done, trials: dict[int, float | None]) -> None:
    """See whether a done-mark says of its record's trials what the record does."""
    if stage == "teacher_logits" or not trials:
        return
    if missing := _trials_named(done) - trials.keys():
        raise _damaged(path, f"the record has no trial {min(missing)}")
    if isinstance(done, Search | Confirmation | Finalists) and len(trials) < _run_count(done):
        raise _damaged(path, f"it speaks of {_run_count(done)} trials, the record of {len(trials)}")
    for trial, said in _accuracies_named(done).items():
        if trials[trial] is None or not math.isclose(trials[trial], said, abs_tol=1e-9):
            raise _damaged(path, f"it says that trial {trial} reached {said:g}, the record {trials[trial]}")


def _run_count(done: Done) -> int:
    return done.trials if isinstance(done, Search) else done.runs


def _checked(path: Path, kind: type[Part]) -> Any | None:
    content = read_json(path)
    if content is None:
        return None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _damaged(path, _why(error)) from None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; restore it from a copy, or remove it and let `kdstudy run` write it "
                     "anew")


def _spoilt(record: Path, why: str) -> UserError:
    """A record whose stage is done: only the whole stage can be done again."""
    return UserError(f"{record} is damaged: {why}; restore it from a copy or from whoever sent it, or remove "
                     f"{_again(record)}")


def _again(record: Path) -> str:
    return f"{record.parent} and let `kdstudy run` do that stage again"


def _check_lines(stage: str, path: Path, content: bytes, done: bool) -> dict[int, float | None]:
    """Per trial of a record its last validation accuracy. A last line may be half written.

    Raises UserError where a line is not what it must be, or does not belong where it stands.
    """
    trials: dict[int, float | None] = {}
    seen: set[tuple[int, int]] = set()  # trial and epoch of the reports that count
    most_epochs, lines = 0, [line for line in content.split(b"\n") if line]
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            checked = EVENTS.get(event["event"], Event).model_validate(event)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines) and not _is_json(line):
                break
            raise _damaged_record(path, number, done, _why(error)) from None
        if event["sequence"] != number - 1:
            raise _damaged_record(path, number, done, f"its sequence is {event['sequence']}, not {number - 1}")
        trial = getattr(checked, "trial", None)
        if isinstance(checked, Session):
            most_epochs = max(most_epochs, checked.epochs or 0)
        elif isinstance(checked, Trial):
            if trial in trials:
                raise _damaged_record(path, number, done, f"trial {trial} begins a second time")
            if not _belongs(stage, checked):
                raise _damaged_record(path, number, done, f"its trial is none of {stage}")
            trials[trial] = None
        elif trial is not None and trial not in trials:
            raise _damaged_record(path, number, done, f"there is no trial {trial} before it")
        elif isinstance(checked, Report):
            if most_epochs and checked.epoch > most_epochs:
                raise _damaged_record(path, number, done, f"epoch {checked.epoch} is beyond the last, {most_epochs}")
            if checked.decision == "failed":  # it may well be at an epoch that was reported
                continue
            if (trial, checked.epoch) in seen:
                raise _damaged_record(path, number, done, f"trial {trial} reports epoch {checked.epoch} again")
            seen.add((trial, checked.epoch))
            trials[trial] = checked.metrics.validation_accuracy
    return trials


def _belongs(stage: str, trial: Trial) -> bool:
    """Whether a stage has trials of that kind."""
    distils = trial.parameters.temperature is not None
    if stage in ("teacher", "baseline", "finalists_baseline", "confirm_baseline") and distils:
        return False
    if stage in ("distill", "finalists", "confirm") and not distils:
        return False
    origins = ORIGINS.get(stage.removesuffix("_baseline"))
    return origins is None or trial.origin in origins


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(location_of(problem))} {wording([problem])}".strip()
    return "it is no event"


def _damaged_record(path: Path, line: int, done: bool, why: str) -> UserError:
    gone = _again(path) if done else "that line and those after it, to run again what they tell"
    return UserError(f"{path} is damaged at line {line}: {why}; restore it from a copy, or remove {gone}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _trials_named(done: Done) -> set[int]:
    """The trials of its own record that a done-mark speaks of."""
    if isinstance(done, Search):
        return {done.winner, *done.ranking}
    rows = getattr(done, "rows", ())
    return {run for row in rows for run in row.runs if run is not None}


def _accuracies_named(done: Done) -> dict[int, float]:
    """The last validation accuracies, 0 to 1, that a done-mark gives for trials of its own record."""
    if isinstance(done, Search):
        return {done.winner: done.best_validation}
    if isinstance(done, Finalists):
        return {run: accuracy for row in done.rows for run, accuracy in zip(row.runs, row.accuracies, strict=False)
                if run is not None and accuracy is not None}
    return {}
