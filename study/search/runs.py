"""What to run, as far as neither Optuna nor Ray is needed to say it: lists of runs, and how runs are told apart."""

from dataclasses import dataclass, replace
from typing import Protocol

from kdstudy.errors import StudyFailedError
from kdstudy.store.record import METRIC, Record, TrialState
from kdstudy.trainables.seeds import small_seed


class Proposer(Protocol):
    """Says what to run: trial `number` given all that is recorded, or None where there is nothing left to run."""

    protected: int  # how many of the first trials are never stopped

    def __call__(self, number: int, record: Record) -> TrialState | None: ...

    def total(self, record: Record) -> int:
        """How many trials there will be in the end."""
        ...


@dataclass(frozen=True)
class ListProposer:
    """Exactly these trials, each of them recognised by what it runs: those on record are not run again."""

    wanted: tuple[TrialState, ...]

    def __call__(self, number: int, record: Record) -> TrialState | None:
        for trial in self._missing(record):
            return replace(trial, number=number)
        return None

    def total(self, record: Record) -> int:
        return len(record.trials) + len(self._missing(record))

    @property
    def protected(self) -> int:
        return len(self.wanted)

    def _missing(self, record: Record) -> list[TrialState]:
        known = {run_key(trial) for trial in record.trials.values()}
        return [trial for trial in self.wanted if run_key(trial) not in known]


def run_key(trial: TrialState) -> tuple:
    """What makes two runs the same run."""
    return (tuple(sorted(trial.parameters.items())), trial.seed, trial.view_seed)


def search_view_seed(seed: int) -> int:
    """All search trials see the same views, so one cache of teacher logits serves them."""
    return small_seed(seed, "search views")


def accuracies(trial: TrialState) -> dict[int, float]:
    """Epoch to validation accuracy, of what a trial has reported in order."""
    return {report["epoch"]: report["metrics"][METRIC] for report in trial.reports
            if report["metrics"].get(METRIC) is not None and report["decision"] != "failed"}


def winner(record: Record) -> TrialState | None:
    """The best last-epoch validation accuracy among trials that ran to the end; ties: validation loss, then number."""
    finished = [trial for trial in record.trials.values() if trial.state == "complete"]
    return min(finished, key=lambda t: (-t.metric(METRIC), t.metric("validation_loss"), t.number), default=None)


def best_or_fail(stage: str, record: Record, remedy: str) -> TrialState:
    """The winner of a stage's trials. Raises StudyFailedError, with the remedy, where there is none."""
    best = winner(record)
    if best is None:
        failed = [trial for trial in record.trials.values() if trial.state == "failed"]
        reason = f": {len(failed)} failed, the first with {failed[0].reason}" if failed else ""
        raise StudyFailedError(f"{stage}: no trial reached its last epoch{reason}; {remedy}")
    return best
