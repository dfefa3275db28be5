"""What a stage is: the protocol that the driver, the plan and the readers of a study's folder rely on.

A stage trains or evaluates models in trials; an output (the report, the export) is written once all stages are done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdstudy.config.settings import StudyConfig
from kdstudy.search.runs import ListProposer, Proposer
from kdstudy.stages.context import Context
from kdstudy.store import files
from kdstudy.store.fingerprints import fingerprint
from kdstudy.store.record import Record, TrialState
from kdstudy.store.schema import StageFiles
from kdstudy.store.storage import Storage
from kdstudy.trainables.files import RESULT_FILES
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # it imports torch, which a finished study can do without
    from kdstudy.trainables.task import Task

BYTES_PER_WEIGHT = 4
BACKWARD = 3  # forward and backward together cost about three forwards
COPIES_IN_CHECKPOINT = 3  # the weights, and the two moments that the usual optimizers keep of each


@dataclass
class StageFolder:
    """A stage's folder, named after the fingerprint of its inputs, and what its done-mark says."""

    name: str
    path: Path
    storage: Storage
    expected: StageFiles
    facts: dict[str, Any] = field(default_factory=dict)  # for its done-mark, besides the outcome

    @property
    def done(self) -> dict[str, Any] | None:
        """What the done-mark says; None where there is none or where any of the stage's files is gone or cut short."""
        done = files.read_json(self.path / "done.json")
        return done if self.expected.is_done(done) and files.vouched_for(self.path, done) else None

    @property
    def record_path(self) -> Path:
        return self.path / "record.jsonl"

    def record(self) -> Record:
        """The record, to be written to."""
        return Record(self.record_path, storage=self.storage)

    def read_record(self) -> Record:
        return Record(self.record_path, write=False)

    def origin(self, record: Record) -> dict[str, str]:
        """For a done-mark that is written anew: where the stage was taken from, if it has run nothing of its own since.

        A stage that was taken over from another study may have to choose again among the runs that came with it.
        """
        earlier = files.read_json(self.path / "done.json") or {}
        if "taken_from" in earlier and earlier["runs"] == len(record.trials):
            return {"taken_from": earlier["taken_from"]}
        return {}

    def finish(self, outcome: dict[str, Any]) -> None:
        """Write the done-mark and publish the folder."""
        files.write_done(self.path, outcome | self.facts)
        self.storage.publish(self.path)


@dataclass(frozen=True)
class Workload:
    """What a stage costs, for the plan.

    runs: at most. protected: how many of the first are never stopped. epochs: of each run. images: seen in an epoch.
    models: those that see them. passes: the cost of an image in forward passes of these models; 1 is inference.
    workers: that train one model together. paced_by: stages whose seconds per epoch, times a factor, stand in where
    this one has recorded none.
    """

    runs: int
    epochs: float
    images: int
    models: tuple[ModelSettings, ...]
    passes: float
    protected: int = 0
    rungs: tuple[int, ...] = ()
    workers: int = 1
    paced_by: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Space:
    """What a stage writes, for the preflight: bytes of a trial's checkpoint, and of all that is kept, under a heading
    that also says which setting makes it smaller."""

    checkpoint: int = 0
    kept: int = 0
    heading: str = ""


class Stage(ABC):
    """One stage of a study.

    name: of its folder and in messages. needs: the stages that must be done before it begins. files: what its folder
    must look like. loop: which of the loops in `kdstudy.trainables` runs its trials. trains: the section whose model it
    trains, `teacher` or `student`. scored: whether its reports must have a validation accuracy. result_files: what is
    kept of a run's last checkpoint, where that is a result.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[StageFiles]
    loop: ClassVar[str]
    trains: ClassVar[str | None] = None
    scored: ClassVar[bool] = True
    result_files: ClassVar[tuple[str, ...]] = RESULT_FILES

    def __init__(self, context: Context):
        self.context, self.config = context, context.config

    # -- without an open study: no images, no models ------------------------------------------------------------------

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        """Whether a study with these settings has the stage."""
        return True

    @classmethod
    def trials_expected(cls, config: StudyConfig) -> int | None:
        """How many trials there will be, before a driver has recorded it; None where that depends on other stages."""
        return None

    @classmethod
    def images_per_epoch(cls, data: dict[str, Any], trial: TrialState) -> int:
        """How many images an epoch of a trial sees. data: what stages.json says of the images."""
        return data["student_train"]

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        """Copy what a packed study keeps of the stage, besides its record and done-mark. teacher: with the teacher's
        weights."""

    # -- its folder ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def inputs(self) -> list[Any]:
        """All that decides the stage's results, as JSON values: its folder is named after their fingerprint."""

    @property
    def folder(self) -> StageFolder:
        """Raises MissingTeacherError where it depends on a teacher that is not there yet."""
        path = self.context.folder / f"{self.name}-{fingerprint(self.name, *self.inputs())}"
        return StageFolder(self.name, path, self.context.storage, self.files)

    def is_current(self) -> bool:
        """Whether it is done, and with as many trials, seeds and views as the settings want now."""
        return self.folder.done is not None

    def may_take_over(self, neighbour: StageFolder) -> bool:
        """Whether the folder of a study beside this one, done with the same inputs, will do for this one."""
        return neighbour.done is not None

    # -- its trials ---------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Of a run."""
        return self.config.train.epochs

    @property
    def rungs(self) -> list[int]:
        """The epochs at which trials may be stopped."""
        return []

    @property
    def workers(self) -> int:
        """How many workers train one model together. More than one are started by Ray Train, not Ray Tune."""
        return 1

    @abstractmethod
    def runs(self) -> tuple[TrialState, ...] | None:
        """The runs that the stage consists of; None where they are proposed one by one, as a search's are."""

    def proposer(self, slots: int) -> Proposer:
        """What says which trial is next. slots: how many run at a time."""
        return ListProposer(self.runs())

    def prepare(self) -> None:
        """What must be settled before the stage is opened."""

    def begin_record(self, record: Record) -> None:
        """What a new record says before its first trial."""

    @abstractmethod
    def task(self) -> Task:
        """What all its runs share."""

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool] | None:
        """What tells whether a finished trial's result files are there; None where no file counts as a result."""
        return None

    @abstractmethod
    def close(self, folder: StageFolder) -> None:
        """Put together what the trials have found. Raises StudyFailedError where that is not enough."""

    # -- where others have done the work, elsewhere -------------------------------------------------------------------

    @property
    def is_given(self) -> bool:
        """Whether there is nothing to run, because the settings name the result."""
        return False

    def take_given(self, folder: StageFolder, measure: Callable[[Task], float]) -> None:
        """Do the stage from what is given. measure: a teacher's validation accuracy, 0 to 1, measured on a worker."""
        raise NotImplementedError

    # -- for the plan -------------------------------------------------------------------------------------------------

    @abstractmethod
    def workload(self) -> Workload:
        """What the stage costs."""

    @abstractmethod
    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        """What the stage will write. runs: still to do. size: bytes of a model's weights."""


class Output(ABC):
    """Something that others read, made from what the stages have found.

    path: relative to the study, to be shown. published: the folder of the study that holds it.
    """

    name: ClassVar[str]
    path: ClassVar[str]
    published: ClassVar[str]

    @abstractmethod
    def write(self, config: StudyConfig, folder: Path) -> bool:
        """Bring it up to date; whether there was anything to do."""
