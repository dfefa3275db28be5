"""The finalists stages: between search and confirmation, retrain the best configurations on fresh seeds.

A search selects the best of many single runs, so its winner is partly luck. This round reruns the default point and the
best few configurations by the fitted surface, which also uses neighbouring points. The best mean validation accuracy
over the seeds wins.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError
from kdstudy.search.runs import METRIC, ListProposer, run_key, search_view_seed
from kdstudy.stages import students
from kdstudy.stages.base import COPIES_IN_CHECKPOINT, Space, Stage, StageFolder, Workload
from kdstudy.stages.search import SEARCHES
from kdstudy.store.record import Record, TrialState
from kdstudy.store.schema import Done, Parameters, Part, Share, StageFiles, Whole
from kdstudy.trainables.seeds import small_seed
from kdstudy.trainables.settings import ModelSettings
from kdstudy.watch.progress import show_parameters

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task


class FinalistRow(Part):
    trial: Whole
    parameters: Parameters
    runs: list[Whole | None]
    accuracies: list[Share | None]


class FinalistsDone(Done):
    runs: Whole
    rows: Annotated[list[FinalistRow], Field(min_length=1)]
    winner: Whole
    parameters: Parameters
    best_validation: Share

    def run_count(self) -> int:
        return self.runs

    def trials_named(self) -> set[int]:
        return {run for row in self.rows for run in row.runs if run is not None}

    def accuracies_named(self) -> dict[int, float]:
        return {run: accuracy for row in self.rows for run, accuracy in zip(row.runs, row.accuracies, strict=False)
                if run is not None and accuracy is not None}


class FinalistsStage(Stage):
    """One arm's finalists. arm: the search whose trials run again."""

    arm: ClassVar[str]
    trains = "student"
    # The choice among the baseline's trials depends on the distillation's trials too.
    needs = tuple(search.name for search in SEARCHES)

    @classmethod
    def is_wanted(cls, config: StudyConfig) -> bool:
        return config.finalists.configurations > 0

    def inputs(self) -> list[Any]:
        return students.shared_inputs(self.context)

    @property
    def _search(self) -> Any:
        return self.context.stage(self.arm)

    def is_current(self) -> bool:
        folder = self.folder
        done = folder.done
        if done is None or not self._search.is_current():
            return False  # the search has changed, and perhaps its winner
        record = folder.read_record()
        return ListProposer(self.runs()).total(record) <= done["runs"] and done["rows"] == self._rows(record)

    def prepare(self) -> None:
        for search in self.needs:
            self.context.stage(search).keep_findings()

    # -- its runs -----------------------------------------------------------------------------------------------------

    def _candidate_runs(self) -> dict[int, list[TrialState]]:
        """Return the runs of each candidate, by its trial number in the search.

        Weights and order use fresh seeds. The views are the search's, for which teacher logits exist already.
        """
        config, trials = self.config, self._search.folder.read_record().trials
        ranking = distinct(self._search.findings["ranking"], trials)
        chosen = candidates(ranking, config.finalists.configurations)
        seeds = [small_seed(config.seed, "finalists", index) for index in range(config.finalists.seeds)]
        return {number: [TrialState(0, trials[number].parameters, seed, search_view_seed(config.seed), "finalist", True,
                                    f"trial {number}") for seed in seeds] for number in chosen}

    def runs(self) -> tuple[TrialState, ...]:
        """Return all runs, seed by seed, so that all candidates can be compared as early as possible."""
        return tuple(run for of_one_seed in zip(*self._candidate_runs().values(), strict=True) for run in of_one_seed)

    def task(self) -> Task:
        # As in a search, but these runs are never stopped early, so they report only at checkpoints.
        task = students.arm_task(self.context, self.arm, [search_view_seed(self.config.seed)])
        return replace(task, report_every=self.config.checkpoint_every)

    def _rows(self, record: Record) -> list[dict[str, Any]]:
        return rows(record, self._candidate_runs())

    def close(self, folder: StageFolder) -> None:
        record = folder.record()
        found = self._rows(record)
        best = winner(found)
        if best is None:
            raise StudyFailedError(f"{self.name}: every configuration failed on fresh seeds; run the same command "
                                   "again to retry, or set finalists.configurations = 0 to skip the finalists")
        seeds = self.config.finalists.seeds
        kept = "the search's winner" if best["trial"] == self._search.folder.done["winner"] else (
            "the default point" if best["trial"] == 0 else f"trial {best['trial']}")
        folder.finish({
            **folder.origin(record),
            "outcome": f"{len(found)} configurations on {seeds} fresh seed{'s' if seeds > 1 else ''} · {kept} is best, "
                       f"{100 * mean(best):.1f} % validation at {show_parameters(best['parameters'])}",
            "seconds": record.seconds, "runs": len(record.trials), "rows": found, "winner": best["trial"],
            "parameters": best["parameters"], "best_validation": mean(best),
        })

    # -- for the plan -------------------------------------------------------------------------------------------------

    def workload(self) -> Workload:
        finalists = self.config.finalists
        # An upper bound, since the default point may be among the best.
        candidates_at_most = min(finalists.configurations + 1, self.config.trials(self.arm))
        return students.workload(self.context, self.arm, candidates_at_most * finalists.seeds)

    def space(self, runs: int, size: Callable[[ModelSettings], int]) -> Space:
        return Space(COPIES_IN_CHECKPOINT * size(self.config.student))


class BaselineFinalists(FinalistsStage):
    name = "finalists_baseline"
    arm = loop = "baseline"
    files = StageFiles(FinalistsDone, frozenset({"finalist"}), distils=False)


class DistillFinalists(FinalistsStage):
    name = "finalists"
    arm = loop = "distill"
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


def candidates(ranking: list[int], count: int) -> list[int]:
    """Return the first `count` trials of a ranking (best first), plus trial 0, the default point, if it is missing."""
    chosen = ranking[:count]
    return chosen if 0 in chosen or 0 not in ranking else [*chosen, 0]


def rows(record: Record, runs: dict[int, list[TrialState]]) -> list[dict[str, Any]]:
    """Return one row per candidate: its trial in the search, parameters, runs, and their last validation accuracies.

    runs: this stage's runs, by trial of the search. Accuracies are 0 to 1, or None for failed and unfinished runs.
    """
    known = {run_key(trial): trial for trial in record.trials.values()}
    found = []
    for trial, wanted in runs.items():
        own = [known.get(run_key(run)) for run in wanted]
        found.append({
            "trial": trial, "parameters": wanted[0].parameters, "runs": [run and run.number for run in own],
            "accuracies": [run.metric(METRIC) if run and run.state == "complete" else None for run in own]})
    return found


def winner(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row with the best mean accuracy, or None if all failed. Ties go to the default point, then by rank.

    A configuration with a failed run cannot win, since it is not reliable enough to use.
    """
    sound = [row for row in found if None not in row["accuracies"]]
    return max(sound, key=lambda row: (round(mean(row), 9), row["trial"] == 0), default=None)


def mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["accuracies"])
