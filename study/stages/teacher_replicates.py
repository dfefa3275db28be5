"""Further teachers, which differ from the first in their seed alone: `teacher.replicates`. The student that is the
study's answer is distilled from each of them too, on the confirmation's seeds, so that teachers are a sample as seeds
and test images are.

Each further teacher has three stages of its own: its training, its logits, its students. So a larger number adds
stages and changes none. Search, finalists and controls know the first teacher alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdstudy.config.sections import MOST_TEACHERS
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError
from kdstudy.search.runs import has_diverged
from kdstudy.stages import students
from kdstudy.stages.base import Space, Stage, StageFolder, Workload
from kdstudy.stages.looks import STAGES as CONFIRMATIONS
from kdstudy.stages.teacher import TeacherStage
from kdstudy.stages.teacher_logits import TeacherLogitsStage
from kdstudy.stages.tested import Configuration, TestedStage
from kdstudy.store.record import TrialState
from kdstudy.store.schema import Done, Parameters, Part, StageFiles, Whole
from kdstudy.trainables.files import TEST_PREDICTIONS
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings

ORIGIN = "further_teacher"


class CrossedRow(Part):
    arm: Literal["distilled"]
    configuration: Literal["tuned", "default"]
    parameters: Parameters
    runs: Annotated[list[Whole], Field(min_length=1)]


class CrossedDone(Done):
    runs: Whole
    seeds: list[Whole]
    rows: Annotated[list[CrossedRow], Field(min_length=1, max_length=1)]

    def run_count(self) -> int:
        return self.runs

    def trials_named(self) -> set[int]:
        return {run for row in self.rows for run in row.runs}


class OfFurtherTeacher(Stage):
    """A stage of one of them. number: which teacher of the study it is, from 2."""

    number: ClassVar[int]

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        return cls.number <= config.teacher.replicates


class FurtherTeacher(OfFurtherTeacher, TeacherStage):
    """One run with the learning rate that the first teacher chose, on a seed of its own."""

    needs = (TeacherStage.name,)

    @classmethod
    def trials_expected(cls, config: StudyConfig) -> int:
        return 1

    def inputs(self) -> list[Any]:
        return [*super().inputs(), {"seed": self._seed}]

    @property
    def rates(self) -> float:
        """The first teacher's. Raises MissingTeacherError while it is not known."""
        return self.context.stage(TeacherStage.name).done["parameters"]["lr"]

    @property
    def _seed(self) -> int:
        return small_seed(self.config.seed, "teacher", self.number)

    def runs(self) -> tuple[TrialState, ...]:
        return (TrialState(0, {"lr": self.rates}, self._seed, self._seed, "teacher"),)

    def close(self, folder: StageFolder) -> None:
        for run in folder.record().trials.values():
            if has_diverged(run):  # and would again
                raise StudyFailedError(f"{self.name}: its training diverged ({run.reason}), which the first teacher's "
                                       f"did not; set teacher.replicates = {self.number - 1} or a smaller teacher.lr")
        super().close(folder)

    def workload(self) -> Workload:
        return replace(super().workload(), runs=1, paced_by={TeacherStage.name: 1.0})

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        return replace(super().space(runs, size), heading="further teachers (fewer with teacher.replicates)")


class FurtherLogits(OfFurtherTeacher, TeacherLogitsStage):
    """Its logits for the views of the confirmation's seeds; the search does not need any."""

    @property
    def view_seeds(self) -> list[int]:
        return self.context.confirm_seeds

    def workload(self) -> Workload:
        load = super().workload()
        return replace(load, paced_by={TeacherLogitsStage.name: 1.0, **load.paced_by})

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        return replace(super().space(runs, size), heading="further teachers' logits (fewer with teacher.replicates)")


class FurtherConfirmation(OfFurtherTeacher, TestedStage):
    """The distilled student that is the study's answer, on the confirmation's seeds, learning from this teacher.

    It begins once both arms are confirmed: with planned looks, after the last. teacher: the stage that trains it."""

    origin, what = ORIGIN, "further teachers'"
    loop = "distill"
    files = StageFiles(CrossedDone, frozenset({ORIGIN}), distils=True)
    result_files = (TEST_PREDICTIONS,)
    teacher: ClassVar[str]

    def inputs(self) -> list[Any]:
        return [*super().inputs(), *students.soft_inputs(self.context, self.teacher)]

    def _parameters(self) -> dict[str, Any] | None:
        """Those of the distilled row that the study's answer compares; None while it is not known."""
        chosen = self.context.stage(CONFIRMATIONS[1]).chosen_parameters()
        return chosen and chosen[self.config.confirm.primary]

    def _is_chosen(self) -> bool:
        return self._parameters() is not None

    def _configurations(self) -> list[Configuration]:
        return [Configuration("distilled", self.config.confirm.primary, self._parameters(), None)]

    def close(self, folder: StageFolder) -> None:
        folder.finish(self._tested(folder))

    def workload(self) -> Workload:
        return students.workload(self.context, self.loop, self.config.confirm.most_seeds)


def _stages_of(number: int) -> tuple[type[Stage], ...]:
    """Return the three stages of a further teacher."""
    teacher, logits = f"teacher_{number}", f"teacher_{number}_logits"
    shared = {"number": number, "__module__": __name__}
    return (
        type(f"FurtherTeacher{number}", (FurtherTeacher,), {"name": teacher, **shared}),
        type(f"FurtherLogits{number}", (FurtherLogits,), {
            "name": logits, "needs": (teacher,), "source": teacher, **shared}),
        type(f"FurtherConfirmation{number}", (FurtherConfirmation,), {
            "name": f"confirm_teacher_{number}", "needs": (logits, *CONFIRMATIONS), "learns_from": logits,
            "teacher": teacher, **shared}),
    )


STAGES = tuple(stage for number in range(2, MOST_TEACHERS + 1) for stage in _stages_of(number))
