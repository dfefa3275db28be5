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
from kdstudy.stages.base import Space, Stage, StageFolder, Workload
from kdstudy.stages.confirm import BaselineConfirmation
from kdstudy.stages.controls.control import Basis, DistilledControl, files_of
from kdstudy.stages.teacher_logits import TeacherLogitsStage
from kdstudy.store import files
from kdstudy.store.fingerprints import hash_file
from kdstudy.store.record import TrialState
from kdstudy.store.schema import Done, Parameters, Share, StageFiles, Whole
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.paths import inside, remove
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Member, Task

ORIGIN = "self_teacher"


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


class _OfSelf(Stage):
    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        return "self" in config.controls.kinds


class SelfTeacherStage(_OfSelf):
    """One run of the tuned baseline, on a seed of its own."""

    name = "self_teacher"
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
        def has_weights(trial: TrialState) -> bool:
            return any((path / WEIGHTS).exists() for path in (
                folder.path, self.context.folder / trial.checkpoint["path"]))

        return has_weights

    def close(self, folder: StageFolder) -> None:
        record, weights = folder.record(), folder.path / WEIGHTS
        (run,) = record.trials.values()
        if has_diverged(run):  # and would again
            raise StudyFailedError(f"{self.name}: the run of the tuned baseline diverged ({run.reason}); leave self "
                                   "out of controls.kinds")
        if run.state != "complete":
            raise StudyFailedError(f"{self.name}: the run of the tuned baseline failed: {run.reason}; run the same "
                                   "command again to retry it, or leave self out of controls.kinds")
        if not weights.exists():
            files.copy_file(inside(self.context.folder, run.checkpoint["path"]) / WEIGHTS, weights)
        remove(folder.path / "runs", folder.path, if_possible=True)
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

        path, settings = self.folder.path / WEIGHTS, self.models[0]
        weights = files.read_weights(path)
        try:
            models.check_weights(settings, weights, **self.context.shape)
        except ValueError as error:
            raise StudyFailedError(f"{path}: {error}; restore it from a copy") from None
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


class SelfLogitsStage(_OfSelf, TeacherLogitsStage):
    """Its logits for the views of the confirmation's seeds."""

    name = "self_logits"
    source = SelfTeacherStage.name
    needs = (SelfTeacherStage.name,)

    def inputs(self) -> list[Any]:
        config = self.config
        return [self._source.weights_hash, self.context.image_hashes, self.context.image_size,
                students.view_inputs(config), config.train.epochs, *self._also_features]

    @property
    def view_seeds(self) -> list[int]:
        return self.context.confirm_seeds

    @property
    def is_given(self) -> bool:
        return False

    def workload(self) -> Workload:
        return replace(super().workload(), paced_by={"baseline": 1 / students.passes(self.config.train)})


class SelfControl(DistilledControl):
    name, kind = "control_self", "self"
    needs = (SelfLogitsStage.name, *DistilledControl.needs)
    learns_from = SelfLogitsStage.name
    files = files_of(distils=True)

    def inputs(self) -> list[Any]:
        return [*super(DistilledControl, self).inputs(), *students.soft_inputs(self.context, SelfTeacherStage.name)]

    def basis(self) -> Basis | None:
        """The teacher is the tuned baseline."""
        distilled, baseline = self.confirmed("distilled"), self.confirmed("baseline")
        return distilled and baseline and {**distilled, **baseline}


STAGES = (SelfTeacherStage, SelfLogitsStage, SelfControl)
