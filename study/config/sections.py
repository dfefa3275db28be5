"""The sections of a study file, as typed settings, and the search ranges in them. `settings` puts them together."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator
from pydantic.fields import FieldInfo

from kdstudy.trainables import losses
from kdstudy.trainables.settings import (
    MAIN_TEACHER,
    FromList,
    LearningRate,
    Line,
    ModelSettings,
    Natural,
    PositiveFloat,
    PositiveInt,
    Settings,
    TrainSettings,
)

Trials = Annotated[int, Field(ge=1, le=10_000)]
Seeds = Annotated[int, Field(ge=1, le=1000)]
Looks = Annotated[tuple[Annotated[int, Field(ge=2, le=1000)], ...], Field(min_length=1, max_length=20)]
LearningRates = Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=100)]
# Accept a single value where a list is expected.
FromOne = BeforeValidator(lambda value: (value,) if isinstance(value, str) else
                          tuple(value) if isinstance(value, list) else value)
MOST_TEACHERS = 10
MOST_DECADES = 15  # of a range on a log scale

FINALIST_SHARE = 0.25  # of a search's epochs that its finalists may cost by default
FEWEST_FINALISTS = 2  # one more run of the best alone changes nothing
MOST_FINALISTS = 3  # candidates that run again by default; more seeds for these help more than more candidates
FINALIST_SEEDS = 3


class Range(Settings):
    """One dimension of the search space: exactly one of log, linear or choice."""

    log: Annotated[tuple[PositiveFloat, PositiveFloat] | None, FromList] = None
    linear: Annotated[tuple[float, float] | None, FromList] = None
    choice: Annotated[tuple[int | float | str, ...] | None, FromList] = Field(None, max_length=1000)

    @model_validator(mode="after")
    def _one_kind(self) -> "Range":
        kinds = [kind for kind in (self.log, self.linear, self.choice) if kind is not None]
        if len(kinds) != 1:
            raise ValueError("takes exactly one of log = [low, high], linear = [low, high], choice = [...]")
        if self.choice is None and not kinds[0][0] < kinds[0][1]:
            raise ValueError(f"needs low < high, not {list(kinds[0])}")
        if self.choice is not None and len(self.choice) < 2:
            raise ValueError("choice needs at least two values")
        if self.choice is not None and len(set(self.choice)) < len(self.choice):
            raise ValueError("choice repeats a value")
        if self.log is not None and math.log10(self.log[1]) - math.log10(self.log[0]) > MOST_DECADES:
            raise ValueError(f"log spans more than {MOST_DECADES} powers of ten")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.log or self.linear

    @property
    def extremes(self) -> tuple[float | int | str, ...]:
        """The values to validate: if these are valid, so are all others."""
        return self.choice or self.bounds

    def contains(self, value: float | str) -> bool:
        if self.choice is not None:
            return value in self.choice
        low, high = self.bounds
        return low <= value <= high


class TeacherSettings(ModelSettings, TrainSettings):
    """The teacher: a model to train, one or several trained models, or a file of logits."""

    model: Line = Field("", description="the model to train, as for the student; or set trained or logits instead")
    trained: Annotated[tuple[Line, ...] | None, FromOne] = Field(
        None, description="folders of trained models, or files of weights of teacher.model; the logits of several are "
                          "averaged", min_length=1, max_length=100
    )
    function: Line | None = Field(None, description="package.module:function that a trained folder may name and call")
    logits: Line | None = Field(None, description="a file that `kdstudy logits` wrote")
    lr: Annotated[LearningRate | LearningRates, FromList] = Field(
        3e-4, description="peak learning rate; of a list, the best on validation is kept"
    )
    replicates: Annotated[int, Field(ge=1, le=MOST_TEACHERS)] = Field(
        1, description="teachers, trained on seeds of their own; with 2 or more, better 5, the interval of the gain "
                       "treats teachers as a sample too"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "TeacherSettings":
        given = [name for name in ("model", "trained", "logits") if getattr(self, name)]
        if len(given) != 1 and given != ["model", "trained"]:
            raise ValueError("needs exactly one of model (to be trained), trained = [folders], logits = file, and both "
                             f"model and trained = [files of its weights], not {' and '.join(given) or 'none'}"
                             + ("; --set teacher.model= removes the study's own model" if "model" in given else ""))
        return self

    @model_validator(mode="after")
    def _trained_again(self) -> "TeacherSettings":
        if self.is_given and self.replicates > 1:
            raise ValueError(f"replicates = {self.replicates} needs a teacher that the study trains; set "
                             "teacher.replicates = 1, or teacher.model alone")
        return self

    @property
    def is_given(self) -> bool:
        """Whether the teacher is given, so that nothing is trained."""
        return bool(self.trained or self.logits)

    @property
    def title(self) -> str:
        """The teacher's display name: its model, or what is given."""
        if not self.trained:
            return self.model or self.logits
        names = " + ".join(Path(path).name for path in self.trained)
        return f"{self.model} from {names}" if self.model else names

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.lr)) if isinstance(self.lr, tuple) else (self.lr,)

    @property
    def model_settings(self) -> ModelSettings:
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})

    @property
    def train_settings(self) -> TrainSettings:
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.model_fields})


class _SharedDefaults(Settings):
    """The default configuration, which always runs, whatever the search finds."""

    teacher: Line = Field(MAIN_TEACHER, description="main, the teacher of [teacher], or NAME of [teachers.NAME]; needs "
                                                    "search.teacher")
    loss: Line = Field(losses.USUAL, description=f"the soft loss: {', '.join(losses.LOSSES)}, or "
                                                 "package.module:function")
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="weight of the soft loss")
    lr: LearningRate = Field(3e-4, description="peak learning rate, of both arms")

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        return losses.check_name(loss)


def _value(parameter: losses.Parameter) -> tuple[Any, FieldInfo]:
    """The type and the field of a loss's parameter."""
    kind = Annotated[float, Field(ge=parameter.low, le=parameter.high)]
    return kind, Field(parameter.default, description=parameter.description)


DefaultPoint = create_model("DefaultPoint", __base__=_SharedDefaults, __doc__=_SharedDefaults.__doc__,
                            **{name: _value(parameter) for name, parameter in losses.PARAMETERS.items()})


class _SharedSearch(Settings):
    """The search space and budget. Ranges apply to both arms, except those of the teacher, the loss, its parameters
    and alpha."""

    trials: Trials = Field(20, description="trials of the distillation")
    baseline_trials: Trials = Field(20, description="trials of the baseline; search.trials does not change it")
    protected: Natural = Field(8, description="Sobol points that are never stopped, besides the default point")
    baseline_protected: Natural = Field(4, description="likewise for the baseline")
    early_stopping: bool = Field(True, description="ASHA: stop trials that are behind at a rung")
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = Field(
        3, description="each rung keeps the best 1/reduction_factor of its trials"
    )
    grace_period: PositiveInt | None = Field(
        None, description="epochs before the first rung; by default the rung comes after the warm-up"
    )
    report_every: PositiveInt | None = Field(None, description="epochs between reports; by default a thirtieth of all")
    checkpoint_every: PositiveInt | None = Field(None, description="epochs between checkpoints; by default 5 reports")
    parallel: Annotated[int, Field(ge=1, le=10_000)] = Field(
        4, description="a trial is proposed from the results of all earlier trials but this many less one, on any "
        "number of workers; also how many trials of a search run at a time at most"
    )
    warm_start: Line | None = Field(
        None, description="another study's folder: TPE starts from what its searches found in the same space"
    )
    teacher: Range | None = Field(None, description="{choice = ['main', 'NAME']}: [teacher], and the sections "
                                                    "[teachers.NAME]")
    loss: Range | None = Field(None, description="{choice = ['hinton', 'dkd']}; a trial has its loss's parameters")
    alpha: Range | None = Field(None, description="{linear = [0, 1]}; every range must include the default point")
    lr: Range | None = Field(None, description="a range for both arms")
    weight_decay: Range | None = Field(None, description="a range for both arms")
    warmup: Range | None = Field(None, description="a range for both arms")
    batch_size: Range | None = Field(None, description="{choice = [64, 128]}")
    optimizer: Range | None = Field(None, description="{choice = ['adamw', 'lamb']}")
    accumulate: Range | None = Field(None, description="{choice = [1, 4]}")
    warmup_epochs: Range | None = Field(None, description="a range for both arms, instead of warmup")
    min_lr: Range | None = Field(None, description="a range for both arms, not above any learning rate")
    layer_decay: Range | None = Field(None, description="a range for both arms; 1 is none")
    head_lr: Range | None = Field(None, description="a range for both arms; 1 is none")
    freeze: Range | None = Field(None, description="{choice = [0, 2, 'all']}")
    clip_grad: Range | None = Field(None, description="a range for both arms; 0 is none")
    ema: Range | None = Field(None, description="{choice = [0, 0.99, 0.999]}, or a range for both arms")
    label_smoothing: Range | None = Field(None, description="a range for both arms")
    drop_path: Range | None = Field(None, description="a range for both arms")
    dropout: Range | None = Field(None, description="a range for both arms")


    def too_few_trials(self) -> str:
        """Say which search has fewer trials than the points that it always runs, and what to set; "" if none has."""
        small = {"trials": max(10, self.protected + 1), "baseline_trials": max(8, self.baseline_protected + 1)}
        study = " ".join(f"--set search.{name}={count}" for name, count in small.items())
        for trials, protected in (("trials", "protected"), ("baseline_trials", "baseline_protected")):
            given, points = getattr(self, trials), getattr(self, protected)
            if given <= points:
                return (f"search.{trials} = {given} is too few: search.{protected} = {points} and the default point "
                        f"need at least {points + 1}; set search.{protected} to at most {given - 1} too, or, "
                        f"for a small study, {study} --set confirm.seeds=3")
        return ""


SearchSettings = create_model("SearchSettings", __base__=_SharedSearch, __doc__=_SharedSearch.__doc__, **{
    name: (Range | None, Field(None, description="{log = [1, 16]}, {linear = [1, 8]} or {choice = [2, 4]}; for trials "
                                                 "whose loss has it"))
    for name in losses.PARAMETERS})


DEEPEST = 50  # levels of tables and lists in a study file
ARMS = {"baseline": "baseline", "distill": "distillation"}  # the ways to train a student, and what to call them
DISTILLATION_ONLY = ("teacher", "loss", losses.TEMPERATURE.name, "alpha", *(
    name for name in losses.PARAMETERS if name != losses.TEMPERATURE.name))
SEARCHABLE = (*DISTILLATION_ONLY, "lr", "weight_decay", "warmup", "batch_size", "optimizer", "accumulate",
              "warmup_epochs", "min_lr", "layer_decay", "head_lr", "freeze", "clip_grad", "ema", "label_smoothing",
              "drop_path", "dropout")
CHOICE_ONLY = ("teacher", "loss", "batch_size", "optimizer", "accumulate", "freeze")


@dataclass(frozen=True)
class Finalists:
    """The round between an arm's search and its confirmation.

    best: the best trials of the search that are candidates. retrained: how many candidates at most run again. seeds:
    the fresh seeds of each.
    """

    best: int
    retrained: int
    seeds: int


class FinalistSettings(Settings):
    """A round between search and confirmation that retrains the best configurations on fresh seeds; validation only."""

    configurations: Natural | None = Field(
        None, description="how many of each arm's best run again, and with them the default point and the one that "
                          "tunes only what both arms share; 0: none; by default two or three of these, if a quarter of "
                          "the search pays for them"
    )
    seeds: Seeds | None = Field(
        None, description="fresh seeds per configuration; the best mean wins; by default 3, or fewer where "
                          "finalists.configurations is not set"
    )


class ConfirmSettings(Settings):
    """The confirmation, and when it has seen enough."""

    seeds: Annotated[Seeds | Looks, FromList] = Field(
        5, description="fresh paired seeds for every row of the table; [3, 5, 10]: stops at the first of these that "
                       "decides"
    )
    gain: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="points; a list of seeds also stops where the gain is shown to be smaller"
    )
    primary: Literal["tuned", "default"] = Field(
        "tuned", description="distilled configuration whose gain over the tuned baseline is the study's answer; the "
                             "intervals of all others are simultaneous"
    )

    @field_validator("seeds")
    @classmethod
    def _growing(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(seeds, tuple) and list(seeds) != sorted(set(seeds)):
            raise ValueError("must grow from look to look, as in [3, 5, 10]")
        return seeds

    @property
    def looks(self) -> tuple[int, ...]:
        """The planned numbers of seeds after each of which the test images are looked at."""
        return self.seeds if isinstance(self.seeds, tuple) else (self.seeds,)

    @property
    def most_seeds(self) -> int:
        return self.looks[-1]


CONTROLS = ("label_smoothing", "placebo", "permuted", "equal_compute", "self")
USUAL_SMOOTHING = 0.1  # of Szegedy et al. (2016, arXiv:1512.00567): the default point of its search


class ControlSettings(Settings):
    """Controls, which say what the gain comes from: they run on the confirmation's seeds once that is done."""

    kinds: Annotated[tuple[Literal[CONTROLS], ...], FromOne] = Field(
        (), description=f"any of {', '.join(CONTROLS)}; by default none"
    )
    label_smoothing: Range | None = Field(
        None, description="the range in which it is tuned; by default {linear = [0, 0.4]}; must include "
                          f"{USUAL_SMOOTHING}"
    )

    @field_validator("kinds")
    @classmethod
    def _each_once(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("names a control twice; name each once")
        return kinds

    @property
    def smoothing(self) -> Range:
        """The range of the label smoothing."""
        return self.label_smoothing or Range(linear=(0.0, 0.4))


class AuditSettings(Settings):
    """An audit of the usual protocol: one run of each arm, best test epoch, nothing tuned. It chooses nothing."""

    seeds: Annotated[int, Field(ge=2, le=1000)] = Field(20, description="of its own, the same for its five arms")
    baseline_batch_size: PositiveInt = Field(128, description="of the baseline as published; not train.batch_size")
    gain: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="points; how often is so much reported where nothing is gained? by default published.gain, "
                          "else 1.34"
    )


class ResourceSettings(Settings):
    cpus_per_trial: PositiveInt = Field(1, description="cores of each trial")
    gpus_per_trial: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="GPUs of each trial, may be a fraction; by default 1 if there are any"
    )
    concurrent: PositiveInt | None = Field(None, description="trials at a time; by default as many as fit")
    teacher_workers: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="workers that train the teacher together (DDP), each with a trial's resources"
    )
    worker_retries: Natural = Field(3, description="how often a trial survives the death of its worker")
    hang_minutes: Annotated[float, Field(gt=0, le=100_000)] = Field(
        5, description="how long a worker may be silent at least before it is taken to hang and its trial is retried"
    )


class WatchSettings(Settings):
    """Trackers for a study's curves, in addition to `kdstudy status`. They do not affect the results."""

    tensorboard: bool = Field(False, description="event files in the study's folder: tensorboard/STAGE/trial-NNN")
    mlflow: Line = Field("", description="MLflow's tracking URI, or a folder; needs kdstudy[mlflow]")
    wandb: Line = Field("", description="a project of Weights & Biases; needs kdstudy[wandb]")


class PublishedSettings(Settings):
    """Published accuracies of this teacher-student pair, in percent; shown for comparison, never used."""

    pair: Line = Field(description="teacher → student")
    gain: float = Field(description="points")
    baseline: float | None = Field(None, description="percent")
    distilled: float | None = Field(None, description="percent")
