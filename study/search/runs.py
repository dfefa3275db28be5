"""Lists of runs, run identity and the choice of a winner, without Optuna or Ray."""

import re
from dataclasses import dataclass, replace
from typing import Protocol

from kdstudy.errors import StudyFailedError
from kdstudy.store.record import METRIC, Record, TrialState
from kdstudy.trainables.seeds import small_seed

DIVERGED = re.compile(r"\w+ is (nan|-?inf) at epoch ")  # how a worker and a trial manager report it


class Proposer(Protocol):
    """Proposes trial `number`, given the record so far; None if there are no more trials."""

    protected: int  # how many of the first trials are never stopped early

    def __call__(self, number: int, record: Record) -> TrialState | None: ...

    def total(self, record: Record) -> int:
        """The total number of trials, past and future."""
        ...


@dataclass(frozen=True)
class ListProposer:
    """Proposes a fixed list of trials, skipping those already on record; see `run_key`."""

    wanted: tuple[TrialState, ...]

    def __call__(self, number: int, record: Record) -> TrialState | None:
        for trial in self._missing(record):
            return replace(trial, number=number)
        return None

    def total(self, record: Record) -> int:
        return len(record.trials) + len(self._missing(record))

    @property
    def protected(self) -> int:
        return len({run_key(trial) for trial in self.wanted})

    def _missing(self, record: Record) -> list[TrialState]:
        """Return the trials that are not on record, each once: rows of a table may share their runs."""
        known = {run_key(trial) for trial in record.trials.values()}
        missing: dict[tuple, TrialState] = {}
        for trial in self.wanted:
            if run_key(trial) not in known:
                missing.setdefault(run_key(trial), trial)
        return list(missing.values())


def run_key(trial: TrialState) -> tuple:
    """Return what identifies a run: two trials with the same key are the same run."""
    return (tuple(sorted(trial.parameters.items())), trial.seed, trial.view_seed)


def has_diverged(trial: TrialState) -> bool:
    """Whether a trial failed because a loss or its accuracy was not finite: with its seed it would do so again."""
    return trial.state == "failed" and bool(DIVERGED.match(trial.reason or ""))


def has_died(trial: TrialState) -> bool:
    """Whether a trial failed for no reason of its own: its workers died, and it has reported no failure."""
    return trial.state == "failed" and not any(report["decision"] == "failed" for report in trial.reports)


def search_view_seed(seed: int) -> int:
    """The view seed of all search trials, which share one cache of teacher logits."""
    return small_seed(seed, "search views")


def accuracies(trial: TrialState) -> dict[int, float]:
    """Return validation accuracy (0 to 1) by epoch, from a trial's reports."""
    return {report["epoch"]: report["metrics"][METRIC] for report in trial.reports
            if report["metrics"].get(METRIC) is not None and report["decision"] != "failed"}


def winner(record: Record) -> TrialState | None:
    """The completed trial with the best last-epoch validation accuracy; ties go to lower validation loss, then number.
    """
    finished = [trial for trial in record.trials.values() if trial.state == "complete"]
    return min(finished, key=lambda t: (-t.metric(METRIC), t.metric("validation_loss"), t.number), default=None)


def best_or_fail(stage: str, record: Record, remedy: str) -> TrialState:
    """Return the winner of a stage's trials. Raises StudyFailedError with the remedy if no trial completed."""
    best = winner(record)
    if best is None:
        failed = [trial for trial in record.trials.values() if trial.state == "failed"]
        reason = f": {len(failed)} failed, the first with {failed[0].reason}" if failed else ""
        raise StudyFailedError(f"{stage}: no trial reached its last epoch{reason}; {remedy}")
    return best
