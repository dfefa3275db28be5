"""What all controls share: one configuration of the student, on the seeds of the confirmation's present look."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdstudy.config.settings import StudyConfig
from kdstudy.stages import students
from kdstudy.stages.base import Stage, StageFolder, Workload
from kdstudy.stages.looks import STAGES as CONFIRMATIONS
from kdstudy.stages.tested import Configuration, TestedStage
from kdstudy.store.schema import Done, Epoch, FileName, Parameters, Part, StageFiles, Whole
from kdstudy.trainables.files import TEST_PREDICTIONS

ORIGIN = "control"
Basis = dict[str, dict[str, Any]]


class ControlRow(Part):
    arm: Literal["control"]
    configuration: FileName
    parameters: Parameters
    runs: Annotated[list[Whole], Field(min_length=1)]


class ControlDone(Done):
    """rests_on: the parameters that the control was made from, by the confirmed arm or the search that has them. If
    these have changed since, the control is out of date. epochs: of each run."""

    runs: Whole
    seeds: list[Whole]
    rows: Annotated[list[ControlRow], Field(min_length=1, max_length=1)]
    rests_on: dict[FileName, Parameters]
    epochs: Annotated[Epoch, Field(ge=1)]

    def run_count(self) -> int:
        return self.runs

    def trials_named(self) -> set[int]:
        return {run for row in self.rows for run in row.runs}


def files_of(distils: bool) -> StageFiles:
    """Return what the folder of a control must look like. distils: whether its runs learn from logits."""
    return StageFiles(ControlDone, frozenset({ORIGIN}), distils=distils)


class OfControl(Stage):
    """A stage of a study whose settings name a control. kind: its name there."""

    kind: ClassVar[str]

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        return cls.kind in config.controls.kinds


class ControlStage(OfControl, TestedStage):
    """A control, once both arms are confirmed. arm: how its runs are trained, `baseline` or `distill`."""

    arm: ClassVar[str]
    origin, what = ORIGIN, "control"
    needs = CONFIRMATIONS
    result_files = (TEST_PREDICTIONS,)

    @abstractmethod
    def basis(self) -> Basis | None:
        """Return what the control is made from, see `ControlDone`; None while it is not known."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return the parameters of its runs."""

    def confirmed(self, arm: str) -> Basis | None:
        """Return the parameters of the row that the study's answer compares, `baseline` or `distilled`."""
        stage, configuration = {"baseline": (CONFIRMATIONS[0], "tuned"),
                                "distilled": (CONFIRMATIONS[1], self.config.confirm.primary)}[arm]
        chosen = self.context.stage(stage).chosen_parameters()
        return chosen and {arm: chosen[configuration]}

    def _is_chosen(self) -> bool:
        return self.basis() is not None

    def _configurations(self) -> list[Configuration]:
        return [Configuration("control", self.kind, self.parameters(), None)]

    def is_current(self) -> bool:
        done = self.folder.done
        return done is not None and done["rests_on"] == self.basis() and super().is_current()

    def close(self, folder: StageFolder) -> None:
        folder.finish({**self._tested(folder), "rests_on": self.basis(), "epochs": self.epochs})

    def workload(self) -> Workload:
        return replace(students.workload(self.context, self.arm, self.config.confirm.most_seeds), epochs=self.epochs)


class DistilledControl(ControlStage):
    """A control that is distilled with the parameters of the distilled student."""

    arm = loop = "distill"
    learns_from = "teacher_logits"

    def inputs(self) -> list[Any]:
        return [*super().inputs(), *students.soft_inputs(self.context)]

    def basis(self) -> Basis | None:
        return self.confirmed("distilled")

    def parameters(self) -> dict[str, Any]:
        return self.basis()["distilled"]
