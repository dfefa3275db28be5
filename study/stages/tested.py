"""What the stages have in common that retrain students on the confirmation's fresh seeds and test each once: both arms'
confirmations, further teachers', the controls' and the audit's."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdstudy.errors import StudyFailedError
from kdstudy.search.runs import ListProposer, has_diverged, run_key
from kdstudy.stages import students
from kdstudy.stages.base import Space, Stage, StageFolder
from kdstudy.stages.looks import Looks
from kdstudy.store import files
from kdstudy.store.predictions import COLUMNS, copy_predictions
from kdstudy.store.record import Record, TrialState
from kdstudy.trainables.files import TEST_PREDICTIONS, WEIGHTS
from kdstudy.trainables.settings import ModelSettings

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task


@dataclass(frozen=True)
class Configuration:
    """One row of the results table. trial: its number in the search, or None if it is not one of the search's points.
    """

    arm: str  # baseline, distilled or control
    name: str  # default, tuned, or `confirm.ONLY` with the parameters that both arms search; of a control, its kind
    parameters: dict[str, Any]
    trial: int | None


class TestedStage(Stage):
    """Configurations of the student on fresh seeds. origin: of its trials. what: they are, in messages. seeds_setting:
    the setting that says how many seeds there are. packed_columns: of the predictions, what a packed study keeps."""

    origin: ClassVar[str]
    what: ClassVar[str]
    seeds_setting: ClassVar[str] = "confirm.seeds"
    packed_columns: ClassVar[tuple[str, ...]] = COLUMNS
    trains = "student"

    @classmethod
    def pack(cls, source: Path, target: Path, done: dict[str, Any], teacher: bool) -> None:
        """Keep the predictions without their logits."""
        for run in sorted((source / "runs").iterdir()):
            kept = target / "runs" / run.name
            kept.mkdir(parents=True)
            copy_predictions(run / TEST_PREDICTIONS, kept / TEST_PREDICTIONS, logits=False, columns=cls.packed_columns)

    def inputs(self) -> list[Any]:
        return [*students.shared_inputs(self.context), self.context.image_hashes["test"]]

    @abstractmethod
    def _is_chosen(self) -> bool:
        """Whether it is known by now what is to be retrained. Raises MissingTeacherError."""

    @abstractmethod
    def _configurations(self) -> list[Configuration]:
        """Return what is retrained."""

    def is_current(self) -> bool:
        folder = self.folder
        done = folder.done
        if done is None or not self._is_chosen():
            return False  # the search has changed, and perhaps its winner
        record = folder.read_record()
        return ListProposer(self.runs()).total(record) <= done["runs"] and done["rows"] == self._rows(record)

    # -- its runs -----------------------------------------------------------------------------------------------------

    @property
    def seeds(self) -> list[int]:
        """The fresh seeds of the present look at the test images."""
        return self.context.confirm_seeds[: Looks(self.context).seeds]

    @property
    def most_seeds(self) -> int:
        """How many seeds there may be in the end."""
        return self.config.confirm.most_seeds

    def runs(self) -> tuple[TrialState, ...]:
        """Return all runs, seed by seed, so that pairs are complete as early as possible."""
        configurations = self._configurations()
        return tuple(self._run(one, seed) for seed in self.seeds for one in configurations)

    def _run(self, configuration: Configuration, seed: int) -> TrialState:
        label = f"{configuration.arm} {configuration.name}"
        return TrialState(0, configuration.parameters, seed, seed, self.origin, True, label)

    def task(self) -> Task:
        # These runs are never stopped early, so they report only at checkpoints.
        task = students.arm_task(self.context, self.learns_from, self.seeds)
        return replace(task, report_every=self.config.checkpoint_every, keep_weights=True,
                       test=self.context.splits.test)

    def result_check(self, folder: StageFolder) -> Callable[[TrialState], bool]:
        def has_results(trial: TrialState) -> bool:
            return (self.context.folder / trial.checkpoint["path"] / TEST_PREDICTIONS).exists()

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

    def _tested(self, folder: StageFolder) -> dict[str, Any]:
        """Return the fields of the done-mark that all have. Runs that diverged get the predictions of a guess.

        Raises StudyFailedError if any other run failed."""
        record, wanted = folder.record(), {run_key(run) for run in self.runs()}
        diverged = [trial for trial in record.trials.values() if run_key(trial) in wanted and has_diverged(trial)]
        for trial in self.failed_runs(record):
            raise StudyFailedError(f"{self.what} run {trial.number} ({trial.label}) failed: {trial.reason}; run the "
                                   "same command again to retry it")
        for trial in diverged:
            self._write_guesses(folder.path / "runs" / f"{trial.number:03d}" / TEST_PREDICTIONS, trial.seed)
        seeds = self.seeds
        return {
            **folder.origin(record),
            "outcome": f"{len(wanted)} runs on {len(seeds)} fresh paired seed{'s' if len(seeds) > 1 else ''}"
                       + (f" of up to {most}" if (most := self.most_seeds) > len(seeds) else "")
                       + (f", {len(diverged)} of them diverged and count as guesses" if diverged else ""),
            "seconds": record.seconds, "runs": len(record.trials), "seeds": seeds, "rows": self._rows(record),
        }

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

    # -- for the plan -------------------------------------------------------------------------------------------------

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        student, splits = size(self.config.student), self.context.splits
        kept = len(splits.test) * (2 * len(splits.class_names) + 16)  # the predictions
        kept += student if WEIGHTS in self.result_files else 0
        return Space(students.copies_in_checkpoint(self.config) * student, runs * kept,
                     f"{self.what} runs (fewer with fewer {self.seeds_setting})")
