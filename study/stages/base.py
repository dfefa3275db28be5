"""The interface of a stage, used by the driver, the plan and the readers of a study folder.

A stage trains or evaluates models in trials. An output (the report, the export) is written once all stages are done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import MissingTeacherError
from kdstudy.search.runs import ListProposer, Proposer, run_key
from kdstudy.stages.context import Context
from kdstudy.store import files
from kdstudy.store.fingerprints import fingerprint
from kdstudy.store.record import Record, TrialState
from kdstudy.store.schema import StageFiles
from kdstudy.store.storage import Storage
from kdstudy.trainables.files import RESULT_FILES
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task

BYTES_PER_WEIGHT = 4
BACKWARD = 3  # a forward and backward pass together cost about three forward passes
COPIES_IN_CHECKPOINT = 3  # the weights, and the two moments of Adam-like optimizers; besides, perhaps their average


_READ: dict[Path, tuple[tuple[int, int, int] | None, Record]] = {}  # each record read last, and of which version


@dataclass
class StageFolder:
    """A stage's folder, named after the fingerprint of its inputs, with its record and done-mark."""

    name: str
    path: Path
    storage: Storage
    expected: StageFiles
    facts: dict[str, Any] = field(default_factory=dict)  # further fields of its done-mark

    @property
    def done(self) -> dict[str, Any] | None:
        """The contents of the done-mark, or None if it is absent or any file of the stage is missing or truncated."""
        done = files.read_json(self.path / "done.json")
        return done if self.expected.is_done(done) and files.vouched_for(self.path, done) else None

    @property
    def record_path(self) -> Path:
        return self.path / "record.jsonl"

    def record(self) -> Record:
        """Open the record for writing."""
        return Record(self.record_path, storage=self.storage)

    def read_record(self) -> Record:
        """Return the record to read. Asked again, it is read again only if the file has changed."""
        path = self.record_path
        now = path.stat() if path.exists() else None
        version = now and (now.st_mtime_ns, now.st_size, now.st_ino)
        if path not in _READ or _READ[path][0] != version:
            _READ[path] = version, Record(path, write=False)
        return _READ[path][1]

    def origin(self, record: Record) -> dict[str, str]:
        """Return the origin to keep in a rewritten done-mark, for a stage copied from another study without new runs.

        Such a stage may have to select its winner again among the copied runs.
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
    """The computing work of a stage, for the plan.

    runs: maximum number. protected: how many of the first runs are never stopped early. epochs: per run. images: per
    epoch. models: the models that process the images. passes: the cost of an image in forward passes of these models;
    1 is inference. parallel: the virtual workers of a search. workers: how many train one model together. paced_by:
    stages whose seconds per epoch, times a factor, are used if this stage has no records.
    """

    runs: int
    epochs: float
    images: int
    models: tuple[ModelSettings, ...]
    passes: float
    protected: int = 0
    rungs: tuple[int, ...] = ()
    parallel: int | None = None
    workers: int = 1
    paced_by: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """The disk space of a stage, for the preflight checks.

    checkpoint: bytes of one trial's checkpoint. kept: bytes of all kept files. heading: what the kept files are, and
    which setting reduces them."""

    checkpoint: int = 0
    kept: int = 0
    heading: str = ""


class Stage(ABC):
    """One stage of a study.

    name: of its folder and in messages. needs: the stages that must be done before it begins. files: what its folder
    must look like. loop: which of the loops in `kdstudy.trainables` runs its trials. trains: the section whose model it
    trains, `student` or a teacher's. learns_from: the stage whose logits its runs learn from; where a trial may have
    other teachers, that of the main one. scored: whether its reports must have a validation accuracy. result_files:
    what is kept of a run's last checkpoint, where that is a result.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[StageFiles]
    loop: ClassVar[str]
    trains: ClassVar[str | None] = None
    learns_from: ClassVar[str | None] = None
    scored: ClassVar[bool] = True
    result_files: ClassVar[tuple[str, ...]] = RESULT_FILES

    def __init__(self, context: Context):
        self.context, self.config = context, context.config

    # -- without an open study: no images, no models ------------------------------------------------------------------

    @classmethod
    def kinds(cls, config: StudyConfig) -> tuple[type[Stage], ...]:
        """The stages that this entry of the list stands for: itself, or several whose names the settings choose."""
        return (cls,)

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        """Whether a study with these settings includes the stage."""
        return True

    @classmethod
    def trials_expected(cls, config: StudyConfig) -> int | None:
        """The number of trials according to the settings, or None if it depends on other stages."""
        return None

    @classmethod
    def images_per_epoch(cls, data: dict[str, Any], trial: TrialState) -> int:
        """The number of images in an epoch of a trial. data: the description of the images in stages.json."""
        return data["student_train"]

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        """Copy what a packed study keeps of the stage, besides its record and done-mark.

        teacher: whether to keep the teacher's weights."""

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The names of all stages that must be done before it begins: `needs`, and those that the settings add."""
        return self.needs

    # -- its folder ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def inputs(self) -> list[Any]:
        """Return everything that the stage's results depend on, as JSON values; their fingerprint names its folder."""

    @property
    def folder(self) -> StageFolder:
        """The stage's folder. Raises MissingTeacherError if it depends on a teacher that is not available yet."""
        path = self.context.folder / f"{self.name}-{fingerprint(self.name, *self.inputs())}"
        return StageFolder(self.name, path, self.context.storage, self.files)

    @property
    def known_folder(self) -> StageFolder | None:
        """The stage's folder, or None if it depends on a teacher that is not available yet."""
        try:
            return self.folder
        except MissingTeacherError:
            return None

    @property
    def is_finished(self) -> bool:
        """Whether it is current; not if it depends on a teacher that is not available yet."""
        try:
            return self.is_current()
        except MissingTeacherError:
            return False

    def is_current(self) -> bool:
        """Whether the stage is done with as many trials, seeds and views as the settings now require."""
        return self.folder.done is not None

    def may_take_over(self, neighbour: StageFolder) -> bool:
        """Whether a sibling study's folder of this stage, with the same inputs, can be copied to this study."""
        return neighbour.done is not None

    # -- its trials ---------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """The number of epochs per run."""
        return self.config.train.epochs

    @property
    def rungs(self) -> list[int]:
        """The epochs at which trials may be stopped."""
        return []

    @property
    def workers(self) -> int:
        """How many workers train one model together. If more than one, Ray Train runs the trials, not Ray Tune."""
        return 1

    @abstractmethod
    def runs(self) -> tuple[TrialState, ...] | None:
        """Return the stage's runs, or None if they are proposed one by one, as in a search."""

    @property
    def parallel(self) -> int | None:
        """The number of virtual workers of a search; None for runs that do not depend on each other."""
        return None

    def proposer(self, concurrent: int) -> Proposer:
        """Return the proposer of the stage's trials. concurrent: how many trials run without each other's results."""
        return ListProposer(self.runs())

    def prepare(self) -> None:
        """Do what must happen before the stage is opened."""

    def begin_record(self, record: Record) -> None:
        """Write the first events of a new record, before any trial."""

    @abstractmethod
    def task(self) -> Task:
        """Return the task that all its runs share."""

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool] | None:
        """Return a function that checks whether a finished trial's result files exist; None if it has none."""
        return None

    def counts_as_result(self, trial: TrialState) -> bool:
        """Whether a failed run is a result of the stage, so that the next driver does not try it again."""
        return False

    def failed_runs(self, record: Record) -> list[TrialState]:
        """Return the trials of a list of runs that failed and are no results: every other run is needed."""
        wanted = {run_key(run) for run in self.runs() or ()}
        return [trial for trial in record.trials.values()
                if trial.state == "failed" and run_key(trial) in wanted and not self.counts_as_result(trial)]

    def may_improve(self, folder: StageFolder) -> bool:
        """Whether the stage, although current, has failed trials that a new driver tries again."""
        return False

    @abstractmethod
    def close(self, folder: StageFolder) -> None:
        """Combine the trials' results and write the done-mark. Raises StudyFailedError if too many trials failed."""

    def settle(self) -> tuple[str, ...]:
        """Draw conclusions once the stage is done. Returns the names of the stages that have more to run after all,
        itself perhaps among them. Raises StudyFailedError."""
        return ()

    # -- given results ------------------------------------------------------------------------------------------------

    @property
    def is_given(self) -> bool:
        """Whether the settings name the result, so that nothing has to run."""
        return False

    def take_given(self, folder: StageFolder, predict: Callable[[Task], np.ndarray]) -> str | None:
        """Complete the stage from the given result. predict: returns a teacher's predictions (N,) for the validation
        images. Returns what the user should know of the result, None if nothing."""
        raise NotImplementedError

    # -- for the plan -------------------------------------------------------------------------------------------------

    @abstractmethod
    def workload(self) -> Workload:
        """Return the computing work of the stage."""

    @abstractmethod
    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        """Return the disk space of the stage. runs: number still to do. size: returns bytes of a model's weights."""


class Output(ABC):
    """A product of the finished stages for users, such as the report.

    path: its path relative to the study, for display. published: the subfolder of the study that is uploaded.
    dispensable: whether the other outputs are written although this one failed.
    """

    name: ClassVar[str]
    path: ClassVar[str]
    published: ClassVar[str]
    dispensable: ClassVar[bool] = False

    def is_wanted(self, config: StudyConfig) -> bool:
        """Whether a study with these settings has the output."""
        return True

    def missing(self, folder: Path) -> str | None:
        """Return why there is nothing to write, in a sentence, or None."""
        return None

    @abstractmethod
    def write(self, config: StudyConfig, folder: Path) -> bool:
        """Update the output. Returns whether anything changed."""
