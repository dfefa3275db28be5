"""The audit of the usual protocol: how much of a gain is reported because of how it is usually measured.

Papers train each arm once, leave both at their default points, give the baseline another batch size, and report the
best test epoch. The audit runs that protocol on many seeds, and each step from there to this study's own comparison;
`kdstudy.analysis.audit` says what it finds. It measures, and chooses nothing.

Its seeds are its own, so that it repeats the study's answer on runs that are independent of the confirmation, and so
that neither makes the other's cache of logits larger. They are the same for all its arms: a seed sets initialisation,
batch order and views, as in the confirmation. Its runs read the test images after every epoch, which no other run does.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdstudy.config.settings import StudyConfig
from kdstudy.stages import students
from kdstudy.stages.base import Stage, StageFolder, Workload
from kdstudy.stages.context import Context
from kdstudy.stages.looks import STAGES as CONFIRMATIONS
from kdstudy.stages.teacher_logits import TeacherLogitsStage
from kdstudy.stages.tested import Configuration, TestedStage
from kdstudy.store.predictions import FEWEST
from kdstudy.store.schema import Done, Parameters, Part, StageFiles, Whole
from kdstudy.trainables.files import TEST_PREDICTIONS, VALIDATION_PREDICTIONS
from kdstudy.trainables.seeds import small_seed

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task

ORIGIN = "audit"
PUBLISHED = "published"  # the baseline as it is usually reported: the default point, at a batch size of its own


class AuditRow(Part):
    arm: Literal["baseline", "distilled"]
    configuration: Literal["published", "default", "tuned"]
    parameters: Parameters
    runs: Annotated[list[Whole], Field(min_length=2)]


class AuditDone(Done):
    runs: Whole
    seeds: Annotated[list[Whole], Field(min_length=2)]
    rows: Annotated[list[AuditRow], Field(min_length=2, max_length=3)]

    def run_count(self) -> int:
        return self.runs

    def trials_named(self) -> set[int]:
        return {run for row in self.rows for run in row.runs}


def audit_seeds(context: Context) -> list[int]:
    """The audit's seeds; with a larger `audit.seeds`, more follow the same ones."""
    return [small_seed(context.config.seed, ORIGIN, index) for index in range(context.config.audit.seeds)]


class OfAudit(Stage):
    """A stage of a study with an audit."""

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        return config.audit is not None


class AuditLogits(OfAudit, TeacherLogitsStage):
    """The teacher's logits for the views of the audit's seeds, apart from those of the study itself, so that an audit
    changes nothing there. It waits for the confirmation, which decides more."""

    name = "audit_logits"
    needs = CONFIRMATIONS

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        shutil.copyfile(source / VALIDATION_PREDICTIONS, target / VALIDATION_PREDICTIONS)  # the rest is kept elsewhere

    @property
    def view_seeds(self) -> list[int]:
        return audit_seeds(self.context)

    @property
    def is_given(self) -> bool:
        return False

    def workload(self) -> Workload:
        load = super().workload()
        return replace(load, paced_by={TeacherLogitsStage.name: 1.0, **load.paced_by})


class AuditStage(OfAudit, TestedStage):
    """One arm of the audit. arm: how its runs are trained, `baseline` or `distill`. row: the arm's name in its rows.
    confirmation: the stage that names its default and its tuned point. row_count: how many configurations it has."""

    arm: ClassVar[str]
    row: ClassVar[str]
    confirmation: ClassVar[str]
    row_count: ClassVar[int] = 2
    origin = what = ORIGIN
    seeds_setting = "audit.seeds"
    needs = CONFIRMATIONS
    result_files = (TEST_PREDICTIONS,)
    packed_columns = FEWEST

    @property
    def seeds(self) -> list[int]:
        return audit_seeds(self.context)

    @property
    def most_seeds(self) -> int:
        return self.config.audit.seeds

    @property
    def _chosen(self) -> dict[str, dict[str, Any]] | None:
        return self.context.stage(self.confirmation).chosen_parameters()

    def _is_chosen(self) -> bool:
        return self._chosen is not None

    def _points(self) -> dict[str, dict[str, Any]]:
        """Return the parameters of each configuration."""
        return self._chosen

    def _configurations(self) -> list[Configuration]:
        return [Configuration(self.row, name, parameters, None) for name, parameters in self._points().items()]

    def task(self) -> Task:
        return replace(super().task(), report_every=1, test_reports=True)

    def close(self, folder: StageFolder) -> None:
        folder.finish(self._tested(folder))

    def workload(self) -> Workload:
        """Besides training, a run tests the model after every epoch."""
        load = students.workload(self.context, self.arm, self.row_count * self.most_seeds)
        more = 1 + len(self.context.splits.test) / (load.images * load.passes)
        return replace(load, passes=load.passes * more,
                       paced_by={stage: factor * more for stage, factor in load.paced_by.items()})


class AuditBaseline(AuditStage):
    name = "audit_baseline"
    arm = loop = row = "baseline"
    confirmation = CONFIRMATIONS[0]
    files = StageFiles(AuditDone, frozenset({ORIGIN}), distils=False)
    row_count = 3

    def _points(self) -> dict[str, dict[str, Any]]:
        own = {"batch_size": self.config.audit.baseline_batch_size}
        return {PUBLISHED: self._chosen["default"] | own, **self._chosen}


class AuditDistill(AuditStage):
    name = "audit"
    needs = (AuditLogits.name, *CONFIRMATIONS)
    arm = loop = "distill"
    learns_from = AuditLogits.name
    row = "distilled"
    confirmation = CONFIRMATIONS[1]
    files = StageFiles(AuditDone, frozenset({ORIGIN}), distils=True)

    def inputs(self) -> list[Any]:
        return [*super().inputs(), *students.soft_inputs(self.context)]
