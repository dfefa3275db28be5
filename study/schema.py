"""What the files of a study must look like. They may come from another machine, or from somebody else."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from study.config import location_of, wording
from study.errors import UserError
from study.storage import read_json
from trainables.settings import Line, ModelSettings

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]  # right there, nowhere else
Positive = Annotated[float, Field(gt=0)]

class Part(BaseModel):
    """A part of a file: what is read of it. More may be there."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Parameters(Part):
    """Of a trial. No name is taken on trust: they become headings."""

    model_config = ConfigDict(extra="forbid")
    temperature: Positive | None = None
    alpha: Share | None = None
    lr: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    warmup: Share | None = None
    batch_size: Annotated[Whole, Field(ge=1)] | None = None
    optimizer: Line | None = None
    first_view: Whole | None = None  # of a piece of the teacher's answers
    view_count: Whole | None = None


class Images(Part):
    train: Whole
    student_train: Whole
    validation: Whole
    test: Annotated[Whole, Field(ge=1)]
    unlabelled: Whole = 0
    classes: Annotated[list[str], Field(min_length=2)]
    image_size: Annotated[Whole, Field(ge=1)]
    duplicates: dict[str, Whole] | None = None
    dropped: Whole = 0


class Description(Part):
    """stages.json"""

    name: FileName
    data: Images
    epochs: Annotated[Whole, Field(ge=1)]
    rungs: list[Annotated[Whole, Field(ge=1)]]
    stages: dict[FileName, FileName]
    machine: str | None = None


class Done(Part):
    """done.json of any stage."""

    outcome: str
    seconds: Seconds
    taken_from: str = ""
    files: dict[str, Whole] | list[str] = Field(default_factory=dict)


class Member(Part):
    model: ModelSettings
    weights: FileName
    normalised: Annotated[list[list[float]], Field(min_length=2, max_length=2)] | None


class Teacher(Done):
    model: str
    members: list[Member]
    kind: str | None
    family: str | None
    parameters: Parameters
    model_parameters: Annotated[Whole, Field(ge=1)] | None
    best_validation: Share
    trials: Whole
    weights: str


class Search(Done):
    trials: Annotated[Whole, Field(ge=1)]
    winner: Whole
    parameters: Parameters
    best_validation: Share
    kind: str
    family: str
    ranking: list[Whole] = Field(default_factory=list)
    only_shared: Parameters | None = None


class TeacherLogits(Done):
    cached: bool
    view_seeds: list[Whole]


class FinalistRow(Part):
    trial: Whole
    parameters: Parameters
    runs: list[Whole | None]
    accuracies: list[Share | None]


class Finalists(Done):
    runs: Whole
    rows: Annotated[list[FinalistRow], Field(min_length=1)]
    winner: Whole
    parameters: Parameters
    best_validation: Share


class ConfirmedRow(Part):
    arm: Literal["baseline", "distilled"]
    configuration: Annotated[str, Field(pattern="^(default|tuned|only .*)$")]
    parameters: Parameters
    trial: Whole | None
    runs: Annotated[list[Whole], Field(min_length=1)]


class Confirmation(Done):
    runs: Whole
    seeds: list[Whole]
    rows: Annotated[list[ConfirmedRow], Field(min_length=2)]
    model_parameters: Annotated[Whole, Field(ge=1)]


DONE = {"teacher": Teacher, "baseline": Search, "distill": Search, "teacher_logits": TeacherLogits,
        "finalists_baseline": Finalists, "finalists": Finalists, "confirm_baseline": Confirmation,
        "confirm": Confirmation}


class Event(Part):
    """A line of record.jsonl."""

    event: str
    sequence: Whole
    time: Seconds


class PriorTrial(Part):
    parameters: Parameters
    accuracies: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    state: Literal["complete", "stopped", "failed"]


class Prior(Event):
    study: str
    trials: list[PriorTrial]


class OfTrial(Event):
    trial: Whole


class Trial(OfTrial):
    parameters: Parameters
    seed: Whole
    view_seed: Whole
    origin: str
    protected: bool
    label: str


class Metrics(Part):
    __pydantic_extra__: dict[str, float | None]
    validation_accuracy: Share | None = None


class Report(OfTrial):
    epoch: Whole
    decision: Literal["continue", "stop", "complete", "failed"]
    reason: str | None
    where: str = ""
    metrics: Metrics


class Checkpoint(OfTrial):
    epoch: Whole
    path: str


class End(OfTrial):
    reason: str


EVENTS = {"prior": Prior, "trial": Trial, "report": Report, "checkpoint": Checkpoint, "end": End, "retry": OfTrial,
          "mismatch": OfTrial}


def is_done(stage: str, content: Any) -> bool:
    """Whether this is what a stage's done-mark looks like."""
    try:
        DONE[stage].model_validate(content)
    except ValidationError:
        return False
    return True


def check(folder: Path) -> None:
    """See whether the files of a started study are what they must be; what is missing or half written is no damage.

    Raises UserError with one line that names the first file that is damaged.
    """
    description = _checked(folder / "stages.json", Description)
    for name, stage in description.stages.items() if description else ():
        trials = _check_record(folder / stage / "record.jsonl")
        done = _checked(folder / stage / "done.json", DONE[name]) if name in DONE else None
        named = _trials_named(done) if done and name != "teacher_logits" else set()
        if trials is not None and not named <= trials:
            raise _damaged(folder / stage / "done.json", f"the record has no trial {min(named - trials)}")


def _checked(path: Path, kind: type[Part]) -> Any | None:
    content = read_json(path)
    if content is None:
        return None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _damaged(path, f"{'.'.join(location_of(problem))} {wording([problem])}".strip()) from None


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; restore it from a copy, or remove it and let `kdstudy run` write it "
                     "anew")


def _check_record(path: Path) -> set[int] | None:
    """The numbers of a record's trials; None where there is no record. A last line may be half written."""
    if not path.is_file():
        return None
    lines, trials = [line for line in path.read_bytes().split(b"\n") if line], set()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            EVENTS.get(event["event"], Event).model_validate(event)
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) and not _is_json(line):
                break
            raise _damaged_record(path, number) from None
        if event["event"] == "trial":
            trials.add(event["trial"])
        elif event["event"] in EVENTS and "trial" in event and event["trial"] not in trials:
            raise _damaged_record(path, number)
    return trials


def _damaged_record(path: Path, line: int) -> UserError:
    return UserError(f"{path} is damaged at line {line}; restore it from a copy, or remove that line and those after "
                     "it, to run again what they tell")


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
