"""Schemas of a study's files, which may come from another machine or from a stranger.

Files that only one stage writes are described in that stage's module, by a subclass of `Done` and a `StageFiles`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from kdstudy.trainables.losses import PARAMETERS
from kdstudy.trainables.paths import is_inside_by_name
from kdstudy.trainables.settings import Line

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]  # no path separators
Positive = Annotated[float, Field(gt=0)]
Epoch = Annotated[int, Field(ge=0, le=1_000_000)]  # the same limit as for settings


def _inside(path: str) -> str:
    if not is_inside_by_name(path):
        raise ValueError("must be a path inside the study: relative, without ..")
    return path


def _of_checkpoint(path: str) -> str:
    """Check that a checkpoint path is one of Ray Tune's, .tune/RUN/TRIAL/CHECKPOINT, or a kept STAGE/runs/NUMBER."""
    parts = _inside(path).split("/")
    if not (parts[0] == ".tune" and len(parts) >= 3) and parts[1:2] != ["runs"]:
        raise ValueError("must be a checkpoint's path inside the study")
    return path


InnerPath = Annotated[str, AfterValidator(_inside)]
CheckpointPath = Annotated[str, AfterValidator(_of_checkpoint)]


class Part(BaseModel):
    """The fields that kdstudy reads of a file or an object in one. Other fields are allowed."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Parameters(Part):
    """A trial's parameters. Unknown names are refused, since the names become table headings."""

    model_config = ConfigDict(extra="forbid")
    teacher: Line | None = None
    loss: Line | None = None
    alpha: Share | None = None
    lr: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    warmup: Share | None = None
    batch_size: Annotated[Whole, Field(ge=1)] | None = None
    optimizer: Line | None = None
    accumulate: Annotated[Whole, Field(ge=1)] | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    min_lr: Annotated[float, Field(ge=0)] | None = None
    layer_decay: Share | None = None
    head_lr: Positive | None = None
    freeze: Whole | Literal["all"] | None = None
    clip_grad: Annotated[float, Field(ge=0)] | None = None
    ema: Share | None = None
    label_smoothing: Share | None = None
    drop_path: Share | None = None
    dropout: Share | None = None
    first_view: Whole | None = None  # of a chunk of the teacher's logits
    view_count: Whole | None = None


Parameters = create_model("Parameters", __base__=_Parameters, __doc__=_Parameters.__doc__, **{
    name: (Annotated[float, Field(ge=one.low, le=one.high)] | None, None) for name, one in PARAMETERS.items()})


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
    notes: list[Line] = Field(default_factory=list)  # earlier versions had none


class Expected(Part):
    """What a stage will run; see `kdstudy.watch.progress.Pending`."""

    model_config = ConfigDict(extra="forbid")
    runs: Epoch
    epochs: Annotated[float, Field(ge=0, le=1e6)]
    protected: Epoch
    may_stop: bool
    paced_by: dict[FileName, Annotated[float, Field(ge=0, le=1e6)]]


class Description(Part):
    """The contents of stages.json."""

    name: FileName
    data: Images
    epochs: Annotated[Whole, Field(ge=1)]
    rungs: list[Annotated[Whole, Field(ge=1)]]
    stages: dict[FileName, FileName]
    wanted: list[FileName] | None = None  # earlier versions had none
    machine: str | None = None
    expected: dict[FileName, Expected] | None = None  # earlier versions had none


class RecordSeal(Part):
    """Line count and digest of a stage's record when the stage finished. Lines may have been appended since."""

    lines: Whole
    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Done(Part):
    """The done-mark of a stage, done.json. Subclasses add fields and declare what these imply about the record."""

    outcome: str
    seconds: Seconds
    taken_from: str = ""
    files: dict[InnerPath, Whole] | list[InnerPath] = Field(default_factory=dict)
    record: RecordSeal | None = None  # absent in earlier versions

    def run_count(self) -> int:
        """The minimum number of trials in the record."""
        return 0

    def trials_named(self) -> set[int]:
        """The numbers of the record's trials that the done-mark refers to."""
        return set()

    def accuracies_named(self) -> dict[int, float]:
        """The last validation accuracy (0 to 1) that the done-mark states, by trial number."""
        return {}


@dataclass(frozen=True)
class StageFiles:
    """The expected files of one kind of stage.

    done: the schema of its done-mark. origins: the allowed origins of its trials. distils: whether its trials have an
    alpha; None skips that check.
    """

    done: type[Done]
    origins: frozenset[str]
    distils: bool | None = None

    def is_done(self, content: Any) -> bool:
        """Whether `content` is a valid done-mark of this stage."""
        try:
            self.done.model_validate(content)
        except ValidationError:
            return False
        return True

    def has(self, trial: "Trial") -> bool:
        """Whether the trial can belong to this stage."""
        distils = trial.parameters.alpha is not None
        return trial.origin in self.origins and self.distils in (None, distils)


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
    start: Whole | None = None


class Metrics(Part):
    __pydantic_extra__: dict[str, float | None]
    validation_accuracy: Share | None = None
    agreement: Share | None = None
    test_accuracy: Share | None = None  # only of runs that are tested after every epoch, for the audit


class Report(OfTrial):
    epoch: Epoch
    decision: Literal["continue", "stop", "complete", "failed"]
    reason: str | None
    where: str = ""
    metrics: Metrics


class Decided(OfTrial):
    epoch: Epoch
    decision: Literal["continue", "stop", "complete"]


class Checkpoint(OfTrial):
    epoch: Epoch
    path: CheckpointPath


class End(OfTrial):
    reason: str


class Session(Event):
    epochs: Epoch | None = None
    rungs: list[Epoch] | None = None


EVENTS = {"session": Session, "prior": Prior, "trial": Trial, "report": Report, "checkpoint": Checkpoint, "end": End,
          "retry": OfTrial, "mismatch": OfTrial, "decision": Decided}
