"""The control `self`: the student's own tuned baseline as the teacher, as in born-again networks (Furlanello et al.,
2018, arXiv:1805.04770). What it gains does not come from a better teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import MissingTeacherError, StudyFailedError
from kdstudy.search.runs import METRIC, has_diverged
from kdstudy.stages import students
from kdstudy.stages.base import Space, StageFolder, Workload
from kdstudy.stages.confirm import BaselineConfirmation
from kdstudy.stages.controls.control import Basis, DistilledControl, OfControl, files_of
from kdstudy.stages.teacher_logits import TeacherLogitsStage
from kdstudy.stages.weights import keep_weights, read_checked, weights_check
from kdstudy.store.fingerprints import hash_file
from kdstudy.store.record import TrialState
from kdstudy.store.schema import Done, Parameters, Share, StageFiles, Whole
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Member, Task

KIND, ORIGIN = "self", "self_teacher"


class SelfTeacherDone(Done):
    trial: Whole
    parameters: Parameters
    best_validation: Share
    weights: Annotated[str, Field(pattern="^[0-9a-f]+$")]

    def run_count(self) -> int:
        return 1

    def trials_named(self) -> set[int]:
        return {self.trial}

    def accuracies_named(self) -> dict[int, float]:
        return {self.trial: self.best_validation}


class SelfTeacherStage(OfControl):
    """One run of the tuned baseline, on a seed of its own."""

    name, kind = "self_teacher", KIND
    needs = BaselineConfirmation.needs
    loop = "baseline"
    trains = "student"
    files = StageFiles(SelfTeacherDone, frozenset({ORIGIN}), distils=False)
    result_files = (WEIGHTS,)

    @classmethod
    def trials_expected(cls, config: StudyConfig) -> int:
        return 1

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        if teacher:
            shutil.copyfile(source / WEIGHTS, target / WEIGHTS)

    def inputs(self) -> list[Any]:
        return [*students.shared_inputs(self.context), self._parameters]

    @property
    def _parameters(self) -> dict[str, Any]:
        """Those of the tuned baseline. Raises MissingTeacherError while it has not been chosen."""
        chosen = self.context.stage(BaselineConfirmation.name).chosen_parameters()
        if chosen is None:
            raise MissingTeacherError
        return chosen["tuned"]

    def runs(self) -> tuple[TrialState, ...]:
        seed = small_seed(self.config.seed, ORIGIN)
        return (TrialState(0, self._parameters, seed, seed, ORIGIN, True, "the student as its own teacher"),)

    def task(self) -> Task:
        return replace(students.arm_task(self.context, None, []), report_every=self.config.checkpoint_every,
                       keep_weights=True)

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool]:
        return weights_check(self.context, folder)

    def close(self, folder: StageFolder) -> None:
        record = folder.record()
        (run,) = record.trials.values()
        if has_diverged(run):  # and would again
            raise StudyFailedError(f"{self.name}: the run of the tuned baseline diverged ({run.reason}); leave self "
                                   "out of controls.kinds")
        if run.state != "complete":
            raise StudyFailedError(f"{self.name}: the run of the tuned baseline failed: {run.reason}; run the same "
                                   "command again to retry it, or leave self out of controls.kinds")
        weights = keep_weights(self.context, folder, run)
        accuracy, model = run.metric(METRIC), self.config.student.model
        folder.finish({"outcome": f"{model}, the tuned baseline · {100 * accuracy:.1f} % validation",
                       "seconds": record.seconds, "trial": run.number, "parameters": run.parameters,
                       "best_validation": accuracy, "weights": hash_file(weights)})

    # -- for its logits -----------------------------------------------------------------------------------------------

    @property
    def weights_hash(self) -> str:
        """A fingerprint of its weights. Raises MissingTeacherError."""
        done = self.folder.done
        if done is None:
            raise MissingTeacherError
        return done["weights"]

    def members(self) -> tuple[Member, ...]:
        """Load the model. Raises MissingTeacherError, or StudyFailedError if its file is damaged."""
        from kdstudy.trainables import models  # both import torch
        from kdstudy.trainables.task import Member

        settings, shape = self.models[0], self.context.shape
        weights = read_checked(self.folder.path / WEIGHTS,
                               lambda read: models.check_weights(settings, read, **shape))
        return (Member(settings, self.config.train, weights),)

    @property
    def models(self) -> tuple[ModelSettings, ...]:
        return (self.context.model("student"),)

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        return students.workload(self.context, "baseline", 1)

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        student = size(self.config.student)
        return Space(students.copies_in_checkpoint(self.config) * student, student, "the student as its own teacher")


class SelfLogitsStage(OfControl, TeacherLogitsStage):
    """Its logits for the views of the confirmation's seeds."""

    name, kind = "self_logits", KIND
    source = SelfTeacherStage.name
    needs = (SelfTeacherStage.name,)

    def inputs(self) -> list[Any]:
        config = self.config
        return [self._source.weights_hash, self.context.image_hashes, self.context.image_size,
                students.view_inputs(config), config.train.epochs, *self._what_is_kept]

    @property
    def view_seeds(self) -> list[int]:
        return self.context.confirm_seeds

    @property
    def is_given(self) -> bool:
        return False

    def workload(self) -> Workload:
        return replace(super().workload(), paced_by={"baseline": 1 / students.passes(self.config.train)})


class SelfControl(DistilledControl):
    name, kind = "control_self", KIND
    needs = (SelfLogitsStage.name, *DistilledControl.needs)
    learns_from = SelfLogitsStage.name
    files = files_of(distils=True)

    def inputs(self) -> list[Any]:
        return [*super(DistilledControl, self).inputs(), *students.soft_inputs(self.context, SelfTeacherStage.name)]

    def parameters(self) -> dict[str, Any]:
        return {name: value for name, value in super().parameters().items() if name != "teacher"}

    def basis(self) -> Basis | None:
        """The teacher is the tuned baseline."""
        distilled, baseline = self.confirmed("distilled"), self.confirmed("baseline")
        return distilled and baseline and {**distilled, **baseline}


STAGES = (SelfTeacherStage, SelfLogitsStage, SelfControl)
