"""The confirmation stages: retrain each arm's default and winner on fresh paired seeds, and test each model once.

The baseline has a confirmation stage of its own, so that studies with different teachers can share it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdstudy.errors import StudyFailedError
from kdstudy.search.runs import ListProposer, has_diverged, run_key
from kdstudy.stages import students
from kdstudy.stages.base import Space, Stage, StageFolder, Workload
from kdstudy.stages.finalists import FINALISTS
from kdstudy.stages.looks import Looks, PastLook
from kdstudy.stages.search import SEARCHES
from kdstudy.stages.teacher import count_parameters
from kdstudy.store import files
from kdstudy.store.predictions import copy_predictions
from kdstudy.store.record import Record, TrialState
from kdstudy.store.schema import Done, Parameters, Part, StageFiles, Whole
from kdstudy.trainables.files import TEST_PREDICTIONS, WEIGHTS
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task

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


@dataclass(frozen=True)
class Configuration:
    """One row of the results table. trial: its number in the search, or None if it is not one of the search's points.
    """

    arm: str  # baseline or distilled
    name: str  # default, tuned, or ONLY with the parameters that both arms search
    parameters: dict[str, Any]
    trial: int | None


class ConfirmationStage(Stage):
    """One arm's confirmation. arm: the search whose winner is retrained. row: the arm's name in the results table."""

    arm: ClassVar[str]
    trains = "student"
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

    def inputs(self) -> list[Any]:
        return [*students.shared_inputs(self.context), self.context.image_hashes["test"]]

    def is_current(self) -> bool:
        folder = self.folder
        done = folder.done
        if done is None or self._choice() is None:
            return False  # the search has changed, and perhaps its winner
        record = folder.read_record()
        return ListProposer(self.runs()).total(record) <= done["runs"] and done["rows"] == self._rows(record)

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

    def runs(self) -> tuple[TrialState, ...]:
        """Return all runs, seed by seed, so that pairs are complete as early as possible."""
        configurations = self._configurations()
        return tuple(self._run(one, seed) for seed in self.seeds for one in configurations)

    def _run(self, configuration: Configuration, seed: int) -> TrialState:
        label = f"{configuration.arm} {configuration.name}"
        return TrialState(0, configuration.parameters, seed, seed, "confirm", True, label)

    def _exported_run(self) -> TrialState | None:
        """Return the run to export, or None if it is not in this stage."""
        return None

    def task(self) -> Task:
        # These runs are never stopped early, so they report only at checkpoints.
        task = students.arm_task(self.context, self.arm, self.seeds)
        return replace(task, report_every=self.config.checkpoint_every, keep_weights=True,
                       test=self.context.splits.test)

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool]:
        """Require the weights of the exported run only, since a packed study has no others."""
        exported = self._exported_run()
        exported_key = run_key(exported) if exported else None

        def has_results(trial: TrialState) -> bool:
            needed = [TEST_PREDICTIONS, WEIGHTS] if run_key(trial) == exported_key else [TEST_PREDICTIONS]
            return all((self.context.folder / trial.checkpoint["path"] / name).exists() for name in needed)

        return has_results

    def _rows(self, record: Record) -> list[dict[str, Any]]:
        """Return the rows of the results table: each configuration, with the numbers of its runs, one per seed."""
        numbers, seeds = {run_key(trial): trial.number for trial in record.trials.values()}, self.seeds
        return [{"arm": one.arm, "configuration": one.name, "parameters": one.parameters, "trial": one.trial,
                 "runs": [numbers.get(run_key(self._run(one, seed))) for seed in seeds]}
                for one in self._configurations()]

    def counts_as_result(self, trial: TrialState) -> bool:
        """A run that diverged is what its configuration does with that seed: it counts as a run at chance."""
        return has_diverged(trial)

    def close(self, folder: StageFolder) -> None:
        record = folder.record()
        wanted = {run_key(run) for run in self.runs()}
        diverged = [trial for trial in record.trials.values() if run_key(trial) in wanted and has_diverged(trial)]
        for trial in self.failed_runs(record):
            raise StudyFailedError(f"confirmation run {trial.number} ({trial.label}) failed: {trial.reason}; run the "
                                   "same command again to retry it")
        for trial in diverged:
            self._write_guesses(folder.path / "runs" / f"{trial.number:03d}" / TEST_PREDICTIONS, trial.seed)
        found, seeds = self._rows(record), self.seeds
        Looks(self.context).keep_first()
        folder.finish({
            **self._history(),
            **folder.origin(record),
            "outcome": f"{len(wanted)} runs on {len(seeds)} fresh paired seed{'s' if len(seeds) > 1 else ''}"
                       + (f" of up to {most}" if (most := self.config.confirm.most_seeds) > len(seeds) else "")
                       + (f", {len(diverged)} of them diverged and count as guesses" if diverged else ""),
            "seconds": record.seconds, "runs": len(record.trials), "seeds": seeds, "rows": found,
            "model_parameters": self._model_parameters(folder),
        })

    def _model_parameters(self, folder: StageFolder) -> int:
        weights = next(folder.path.glob(f"runs/*/{WEIGHTS}"), None)
        if weights:
            return count_parameters(files.read_weights(weights))
        if earlier := files.read_json(folder.path / "done.json"):
            return earlier["model_parameters"]  # of a packed baseline
        from kdstudy.trainables import models  # imports torch

        return models.build(self.config.student, **self.context.shape).parameter_count  # no run has left weights

    def _write_guesses(self, path: Path, seed: int) -> None:
        """Write the predictions of a model that guesses: each class as often as the others, whatever the image."""
        import torch

        from kdstudy.trainables.predictions import write_logits  # imports torch

        splits = self.context.splits
        images, classes = len(splits.test), len(splits.class_names)
        guesses = torch.randperm(images, generator=torch.Generator().manual_seed(seed)) % classes
        with tempfile.TemporaryDirectory() as temporary:
            draft = Path(temporary) / TEST_PREDICTIONS
            write_logits(torch.nn.functional.one_hot(guesses, classes).float(), splits.test.labels, draft)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path, draft.read_bytes())

    # -- its looks at the test images ---------------------------------------------------------------------------------

    @property
    def seeds(self) -> list[int]:
        """The fresh seeds of the present look."""
        return self.context.confirm_seeds[: Looks(self.context).seeds]

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

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        student, splits = size(self.config.student), self.context.splits
        predictions = len(splits.test) * (2 * len(splits.class_names) + 16)
        return Space(students.copies_in_checkpoint(self.config) * student, runs * (student + predictions),
                     "confirmed runs (fewer with fewer confirm.seeds)")


class BaselineConfirmation(ConfirmationStage):
    name = "confirm_baseline"
    arm = loop = row = "baseline"
    files = StageFiles(ConfirmationDone, frozenset({"confirm"}), distils=False)


class DistillConfirmation(ConfirmationStage):
    name = "confirm"
    arm = loop = "distill"
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
