"""The confirmation stages: retrain each arm's default and winner on fresh paired seeds, and test each model once.

The baseline has a confirmation stage of its own, so that studies with different teachers can share it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdstudy.search.runs import has_diverged, run_key
from kdstudy.stages import students
from kdstudy.stages.base import StageFolder, Workload
from kdstudy.stages.finalists import FINALISTS
from kdstudy.stages.looks import Looks, PastLook
from kdstudy.stages.search import SEARCHES
from kdstudy.stages.tested import Configuration, TestedStage
from kdstudy.stages.weights import count_parameters
from kdstudy.store import files
from kdstudy.store.predictions import copy_predictions
from kdstudy.store.record import TrialState
from kdstudy.store.schema import Done, Parameters, Part, StageFiles, Whole
from kdstudy.trainables.files import TEST_PREDICTIONS, WEIGHTS

ONLY = "only {} tuned"  # the configuration that keeps the loss, its parameters and alpha at their defaults


class ConfirmedRow(Part):
    arm: Literal["baseline", "distilled"]
    configuration: Annotated[str, Field(pattern="^(default|tuned|only .*)$")]
    parameters: Parameters
    trial: Whole | None
    runs: Annotated[list[Whole], Field(min_length=1)]


class ConfirmationDone(Done):
    """plan, looks: of the distillation's alone, and only where the test images are looked at more than once."""

    runs: Whole
    plan: list[Annotated[Whole, Field(ge=1)]] | None = None
    looks: list[PastLook] | None = None
    seeds: list[Whole]
    rows: Annotated[list[ConfirmedRow], Field(min_length=2)]
    model_parameters: Annotated[Whole, Field(ge=1)]

    def run_count(self) -> int:
        return self.runs

    def trials_named(self) -> set[int]:
        return {run for row in self.rows for run in row.runs}


class ConfirmationStage(TestedStage):
    """One arm's confirmation. arm: the search whose winner is retrained. row: the arm's name in the results table."""

    origin, what = "confirm", "confirmation"
    arm: ClassVar[str]
    row: ClassVar[str]
    needs = (*(search.name for search in SEARCHES), *(stage.name for stage in FINALISTS.values()))

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        """Keep all predictions, but only the best student's logits and weights."""
        tuned = (row for row in done["rows"] if (row["arm"], row["configuration"]) == ("distilled", "tuned"))
        chosen = {next((run for run in row["runs"] if (source / "runs" / f"{run:03d}" / WEIGHTS).exists()), None)
                  for row in tuned}
        for run in sorted((source / "runs").iterdir()):
            best, kept = int(run.name) in chosen, target / "runs" / run.name
            kept.mkdir(parents=True)
            copy_predictions(run / TEST_PREDICTIONS, kept / TEST_PREDICTIONS, logits=best)
            if best:
                shutil.copyfile(run / WEIGHTS, kept / WEIGHTS)

    def prepare(self) -> None:
        for search in SEARCHES:
            self.context.stage(search.name).keep_findings()

    # -- its runs -----------------------------------------------------------------------------------------------------

    def _choice(self) -> dict[str, Any] | None:
        """Return the done-mark that names the arm's winner: that of the finalists if there are any, else that of the
        search. None if that stage is not current."""
        search, finalists = self.context.stage(self.arm), self.context.stage(FINALISTS[self.arm].name)
        if not search.is_current():
            return None
        if not finalists.is_wanted(self.config):
            return search.folder.done
        return finalists.folder.done if finalists.is_current() else None

    def _is_chosen(self) -> bool:
        return self._choice() is not None

    def _configurations(self) -> list[Configuration]:
        """Return the arm's default and tuned configurations.

        For distillation, also one that tunes only the parameters that both arms share: it separates the gain from a
        tuned learning rate from the gain from distillation."""
        best, default = self._choice(), self.config.default_parameters(self.arm)
        shared = self.context.stage(self.arm).findings["only_shared"]
        name = ONLY.format(self.config.shared_named) if shared else ""
        only = [Configuration(self.row, name, default | shared, None)] if shared else []
        return [Configuration(self.row, "default", default, 0), *only,
                Configuration(self.row, "tuned", best["parameters"], best["winner"])]

    def _exported_run(self) -> TrialState | None:
        """Return the run to export, or None if it is not in this stage."""
        return None

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool]:
        """Require the weights of the exported run only, since a packed study has no others."""
        exported, has_predictions = self._exported_run(), super().result_check(folder)
        exported_key = run_key(exported) if exported else None

        def has_results(trial: TrialState) -> bool:
            weights = self.context.folder / trial.checkpoint["path"] / WEIGHTS
            return has_predictions(trial) and (run_key(trial) != exported_key or weights.exists())

        return has_results

    def close(self, folder: StageFolder) -> None:
        found = self._tested(folder)
        Looks(self.context).keep_first()
        folder.finish({**self._history(), **found, "model_parameters": self._model_parameters(folder)})

    def _model_parameters(self, folder: StageFolder) -> int:
        weights = next(folder.path.glob(f"runs/*/{WEIGHTS}"), None)
        if weights:
            return count_parameters(files.read_weights(weights))
        if earlier := files.read_json(folder.path / "done.json"):
            return earlier["model_parameters"]  # of a packed baseline
        from kdstudy.trainables import models  # imports torch

        return models.build(self.config.student, **self.context.shape).parameter_count  # no run has left weights

    # -- its looks at the test images ---------------------------------------------------------------------------------

    def chosen_parameters(self) -> dict[str, dict[str, Any]] | None:
        """The parameters of the default configuration and of the arm's present winner; None while it has none.

        Raises MissingTeacherError."""
        choice = self._choice()
        return choice and {"default": self.config.default_parameters(self.arm), "tuned": choice["parameters"]}

    def settle(self) -> tuple[str, ...]:
        return Looks(self.context).settle()

    def _history(self) -> dict[str, Any]:
        """What the done-mark keeps of earlier ones."""
        return {}

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        return students.workload(self.context, self.arm, self._row_count * self.config.confirm.most_seeds)

    @property
    def _row_count(self) -> int:
        """Return the maximum number of rows in the results table."""
        return 2


class BaselineConfirmation(ConfirmationStage):
    name = "confirm_baseline"
    arm = loop = row = "baseline"
    files = StageFiles(ConfirmationDone, frozenset({"confirm"}), distils=False)


class DistillConfirmation(ConfirmationStage):
    name = "confirm"
    arm = loop = "distill"
    learns_from = "teacher_logits"
    row = "distilled"
    files = StageFiles(ConfirmationDone, frozenset({"confirm"}), distils=True)

    def inputs(self) -> list[Any]:
        return [*super().inputs(), *students.soft_inputs(self.context)]

    def _history(self) -> dict[str, Any]:
        return Looks(self.context).history()

    def _exported_run(self) -> TrialState:
        """Return the best student: the tuned distillation on the first seed with which it did not diverge."""
        runs = [self._run(self._configurations()[-1], seed) for seed in self.seeds]
        diverged = {run_key(trial) for trial in self.folder.read_record().trials.values() if has_diverged(trial)}
        return next((run for run in runs if run_key(run) not in diverged), runs[0])

    @property
    def _row_count(self) -> int:
        return 2 + bool(self.config.shared_parameters)
