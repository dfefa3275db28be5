"""The finalists stages: between search and confirmation, retrain the best candidates on fresh seeds.

A search selects the best of many single runs, so its winner is partly luck. This round reruns the best configurations
by the fitted surface, which also uses neighbouring points, and for distillation the point that tunes only what both
arms share. The best mean validation accuracy wins, with a candidate's own trial in the search counted as one more run;
ties go to the default point, which is always among them. `tests/known_choices.py` compares such rules by simulation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError
from kdstudy.search.runs import METRIC, ListProposer, has_diverged, run_key, search_view_seed
from kdstudy.stages import students
from kdstudy.stages.base import Space, Stage, StageFolder, Workload
from kdstudy.stages.search import SEARCHES
from kdstudy.store.record import Record, TrialState
from kdstudy.store.schema import Done, Parameters, Part, Share, StageFiles, Whole
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings
from kdstudy.watch.progress import show_parameters

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task


class FinalistRow(Part):
    trial: Whole | None
    parameters: Parameters
    runs: list[Whole | None]
    accuracies: list[Share | None]
    searched: Share | None = None  # absent in studies of earlier versions, where the runs alone counted


class FinalistsDone(Done):
    runs: Whole
    rows: Annotated[list[FinalistRow], Field(min_length=1)]
    winner: Whole | None
    parameters: Parameters
    best_validation: Share

    def run_count(self) -> int:
        return self.runs

    def trials_named(self) -> set[int]:
        return {run for row in self.rows for run in row.runs if run is not None}

    def accuracies_named(self) -> dict[int, float]:
        return {run: accuracy for row in self.rows for run, accuracy in zip(row.runs, row.accuracies, strict=False)
                if run is not None and accuracy is not None}


@dataclass(frozen=True)
class Candidate:
    """A configuration that may be chosen. trial: its number in the search; None for the one that has no trial there."""

    trial: int | None
    parameters: dict[str, Any]
    runs: tuple[TrialState, ...]


class FinalistsStage(Stage):
    """One arm's finalists. arm: the search whose trials run again."""

    arm: ClassVar[str]
    trains = "student"
    # The choice among the baseline's trials depends on the distillation's trials too.
    needs = tuple(search.name for search in SEARCHES)

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        return config.finalists_of(cls.arm) is not None

    def inputs(self) -> list[Any]:
        return students.shared_inputs(self.context)

    @property
    def _search(self) -> Any:
        return self.context.stage(self.arm)

    def is_current(self) -> bool:
        folder = self.folder
        done = folder.done
        if done is None or not self.is_wanted(self.config):
            return False
        if not all(self.context.stage(search).is_current() for search in self.needs):
            return False  # a search has changed, and perhaps its winner
        record = folder.read_record()
        if ListProposer(self.runs()).total(record) <= done["runs"] and done["rows"] == self._rows(record):
            return True
        return done["rows"] == self._earlier_rows(record)

    def prepare(self) -> None:
        for search in SEARCHES:
            self.context.stage(search.name).keep_findings()

    # -- its runs -----------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Candidate]:
        finalists, trials = self.config.finalists_of(self.arm), self._search.folder.read_record().trials
        ranking = distinct(self._search.findings["ranking"], trials)
        point = self._shared_point()
        there = [number for number in ranking if trials[number].parameters == point][:1]
        shared = there or ([None] if point else [])
        chosen = candidates(ranking, shared, finalists.best, finalists.retrained)
        found = [self._candidate(number, trials, finalists.seeds) for number in chosen]
        if 0 in ranking and 0 not in chosen:  # the default point then counts with its own trial alone
            found.append(self._candidate(0, trials, 0))
        return found

    def _shared_point(self) -> dict[str, Any] | None:
        """Return the point that tunes only what both arms share, or None if it is unknown."""
        values = self._search.findings["only_shared"]
        return self.config.default_parameters(self.arm) | values if values else None

    def _candidate(self, trial: int | None, trials: dict[int, TrialState], seeds: int) -> Candidate:
        """Return a candidate with its runs.

        Weights and order use fresh seeds. The views are the search's, for which teacher logits exist already.
        """
        parameters = self._shared_point() if trial is None else trials[trial].parameters
        label = "tunes only what both arms share" if trial is None else f"trial {trial}"
        return Candidate(trial, parameters, tuple(
            TrialState(0, parameters, small_seed(self.config.seed, "finalists", index),
                       search_view_seed(self.config.seed), "finalist", True, label) for index in range(seeds)))

    def runs(self) -> tuple[TrialState, ...]:
        """Return all runs, seed by seed, so that all candidates can be compared as early as possible."""
        retrained = [one.runs for one in self._candidates() if one.runs]
        return tuple(run for of_one_seed in zip(*retrained, strict=True) for run in of_one_seed)

    def _rows(self, record: Record) -> list[dict[str, Any]]:
        return rows(record, self._candidates(), self._search.folder.read_record())

    def _earlier_rows(self, record: Record) -> list[dict[str, Any]] | None:
        """Return the rows that earlier versions would have written: a study that ended with these stays as it is."""
        best, trials = self.config.finalists.configurations, self._search.folder.read_record().trials
        if best is None:
            return None
        ranking = distinct(self._search.findings["ranking"], trials)
        chosen = ranking[:best] if 0 in ranking[:best] or 0 not in ranking else [*ranking[:best], 0]
        known = [self._candidate(number, trials, self.config.finalists_of(self.arm).seeds) for number in chosen]
        return [{name: value for name, value in row.items() if name != "searched"}
                for row in rows(record, known, self._search.folder.read_record())]

    def task(self) -> Task:
        # As in a search, but these runs are never stopped early, so they report only at checkpoints.
        task = students.arm_task(self.context, self.learns_from, [search_view_seed(self.config.seed)])
        return replace(task, report_every=self.config.checkpoint_every)

    def counts_as_result(self, trial: TrialState) -> bool:
        """A run that diverged is what its configuration does with that seed: it cannot win."""
        return has_diverged(trial)

    def close(self, folder: StageFolder) -> None:
        record = folder.record()
        for trial in self.failed_runs(record):
            raise StudyFailedError(f"{self.name}: run {trial.number} ({trial.label}) failed: {trial.reason}; run the "
                                   "same command again to retry it, or set finalists.configurations = 0")
        found = self._rows(record)
        best = winner(found)
        if best is None:
            raise StudyFailedError(f"{self.name}: every configuration diverged on fresh seeds; set "
                                   "finalists.configurations = 0 to skip the finalists")
        seeds, again = self.config.finalists_of(self.arm).seeds, sum(bool(row["runs"]) for row in found)
        folder.finish({
            **folder.origin(record),
            "outcome": f"{again} configuration{'s' if again > 1 else ''} on {seeds} fresh "
                       f"seed{'s' if seeds > 1 else ''} · {self._name(best)} is best, "
                       f"{100 * mean(best):.1f} % validation at {show_parameters(best['parameters'])}",
            "seconds": record.seconds, "runs": len(record.trials), "rows": found, "winner": best["trial"],
            "parameters": best["parameters"], "best_validation": mean(best),
        })

    def _name(self, row: dict[str, Any]) -> str:
        if row["trial"] is None:
            return f"the point that tunes only {self.config.shared_named}"
        if row["trial"] == self._search.folder.done["winner"]:
            return "the search's winner"
        if row["trial"] == 0:
            return "the default point" if row["runs"] else "the default point's own trial"
        return f"trial {row['trial']}"

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        finalists = self.config.finalists_of(self.arm)
        # An upper bound, since the default point may be among the best.
        extra = 1 if self.arm == "distill" and self.config.shared_parameters else 0
        retrained = min(finalists.retrained, self.config.trials(self.arm) + extra)
        return students.workload(self.context, self.arm, retrained * finalists.seeds)

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        return Space(students.copies_in_checkpoint(self.config) * size(self.config.student))


class BaselineFinalists(FinalistsStage):
    name = "finalists_baseline"
    arm = loop = "baseline"
    files = StageFiles(FinalistsDone, frozenset({"finalist"}), distils=False)


class DistillFinalists(FinalistsStage):
    name = "finalists"
    arm = loop = "distill"
    learns_from = "teacher_logits"
    files = StageFiles(FinalistsDone, frozenset({"finalist"}), distils=True)

    def inputs(self) -> list[Any]:
        return [*super().inputs(), *students.soft_inputs(self.context)]


FINALISTS = {stage.arm: stage for stage in (BaselineFinalists, DistillFinalists)}


def distinct(ranking: list[int], trials: dict[int, TrialState]) -> list[int]:
    """Remove repeated configurations from a ranking, keeping the first trial of each: spaces of choices have repeats.
    """
    first: dict[tuple, int] = {}
    for number in sorted(ranking):
        first.setdefault(tuple(sorted(trials[number].parameters.items())), number)
    by_rank = (first[tuple(sorted(trials[number].parameters.items()))] for number in ranking)
    return list(dict.fromkeys(by_rank))


def candidates(ranking: list[int], shared: list[int | None], best: int, retrained: int) -> list[int | None]:
    """Return the trials that run again, at most `retrained`.

    In order: the best of a ranking (best first), the point that tunes only what both arms share (`shared`: its trial,
    None where it has none, or nothing), the rest of the `best` best, and trial 0, the default point.
    """
    default = [number for number in ranking if number == 0]
    chosen = [*ranking[:1], *shared, *ranking[1:best], *default]
    return list(dict.fromkeys(chosen))[:retrained]


def rows(record: Record, found: list[Candidate], search: Record) -> list[dict[str, Any]]:
    """Return one row per candidate: its trial in the search, parameters, runs, and last validation accuracies.

    Accuracies, of the runs and of the candidate's own trial (`searched`), are 0 to 1; None for failed and unfinished
    runs, and where there is no such trial.
    """
    known = {run_key(trial): trial for trial in record.trials.values()}
    table = []
    for one in found:
        own = [known.get(run_key(run)) for run in one.runs]
        table.append({
            "trial": one.trial, "parameters": one.parameters, "runs": [run and run.number for run in own],
            "accuracies": [run.metric(METRIC) if run and run.state == "complete" else None for run in own],
            "searched": None if one.trial is None else search.trials[one.trial].metric(METRIC)})
    return table


def winner(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row with the best mean accuracy, or None if all failed. Ties go to the default point, then by rank.

    A configuration with a failed run cannot win, since it is not reliable enough to use.
    """
    sound = [row for row in found if None not in row["accuracies"]]
    return max(sound, key=lambda row: (round(mean(row), 9), row["trial"] == 0), default=None)


def mean(row: dict[str, Any]) -> float:
    """Return a candidate's mean accuracy over its runs and its own trial in the search."""
    searched = row.get("searched")
    return statistics.fmean(row["accuracies"] if searched is None else [*row["accuracies"], searched])
