"""The trial manager: hands out trials, decides whether they continue, and records every decision.

`TrialManager` does not use Ray actors, so tests and simulations can drive it directly. `kdstudy.tune.tuner` connects
it to Ray Tune.
"""

import bisect
import math
from collections.abc import Callable, Iterable
from typing import Any

from kdstudy.search.order import AtOnce, InVirtualTime, Order
from kdstudy.search.runs import Proposer
from kdstudy.store.record import METRIC, Record, TrialState


class TrialManager:
    """Hands out trials and decides after each report. Both are recorded before anything else happens.

    parallel: the number of virtual workers of a search that decides in virtual time, so that its trials do not depend
    on when they report; see `kdstudy.search.virtual_time`. If None, every decision is made at once, from what has been
    reported so far.

    has_results: whether a completed trial's result files exist. If given, a trial is finished only once its last
    epoch's checkpoint is recorded and these files exist. scored: whether every report must include an accuracy.
    """

    def __init__(self, record: Record, proposer: Proposer, *, epochs: int, rungs: Iterable[int] = (),
                 reduction_factor: int = 3, parallel: int | None = None,
                 has_results: Callable[[TrialState], bool] | None = None,
                 scored: bool = True, on_change: Callable[[], None] | None = None):
        self.proposer, self.epochs, self.has_results = proposer, epochs, has_results
        self.rungs, self._reduction_factor, self._parallel = list(rungs), reduction_factor, parallel
        self._on_change, self._scored = on_change or (lambda: None), scored
        self._begin(record)

    def _begin(self, record: Record) -> None:
        self.record = record
        self._order: Order
        if self._parallel is None:
            self._order = AtOnce(record, self.rungs, self.epochs, self._reduction_factor)
        else:
            self._order = InVirtualTime(record, self.rungs, self.epochs, self._reduction_factor, self._parallel,
                                        self.proposer.protected + 1)  # besides trial 0
        self._unfinished = [trial.number for trial in record.trials.values() if not self.is_finished(trial)]
        self.running: set[int] = set()
        self._begun_at: dict[int, int] = {}  # epochs that each trial had completed when it was handed out

    def reopen(self) -> None:
        """Start again from the record on disk, as a new driver would."""
        self._begin(self.record.reopened())

    def is_finished(self, trial: TrialState) -> bool:
        if trial.state == "complete" and self.has_results:
            saved = trial.checkpoint is not None and trial.checkpoint["epoch"] == self.epochs
            return saved and self.has_results(trial)
        # A trial whose last rung still waits for other trials may have run all its epochs.
        return trial.state != "running" or trial.epoch >= self.epochs

    def next(self) -> TrialState | None:
        """Return the next trial to run, interrupted ones first, or None if there are no more."""
        self._unfinished = self._to_continue()
        if self._unfinished:
            trial = self.record.trials[self._unfinished.pop(0)]
        else:
            trial = self._order.propose(self.proposer)
            if trial is None:
                return None
        self.running.add(trial.number)
        self._begun_at[trial.number] = trial.epoch
        self._on_change()
        return trial

    def report(self, number: int, metrics: dict[str, Any]) -> str:
        """Record a report and return the decision: continue, stop, complete or failed."""
        metrics = dict(metrics)
        epoch, failure, where = metrics.pop("epoch"), metrics.pop("failure", None), metrics.pop("where", None)
        if self._scored and not failure and not math.isfinite(metrics.get(METRIC, math.nan)):
            failure = f"{METRIC} is {metrics.get(METRIC, 'missing')} at epoch {epoch}"
        trial = self.record.trials[number]
        if trial.state == "stopped":  # meanwhile, at an earlier epoch: what it did since counts for nothing
            self.running.discard(number)
            return "stop"
        earlier = trial.recorded(epoch)
        if earlier is not None and not failure:
            self._compare(trial, epoch, earlier, metrics)
        else:
            self._order.report(trial, epoch, metrics, failure, where)
        decision = self._answer(trial, earlier)
        if decision != "continue":
            self.running.discard(number)
        self._on_change()
        return decision

    def _answer(self, trial: TrialState, earlier: dict[str, Any] | None) -> str:
        """Return what the trial's worker is told."""
        if earlier is not None and trial.state == "complete":
            return earlier["decision"]  # it runs again, since its result files are missing
        if trial.state != "running":
            return {"stopped": "stop"}.get(trial.state, trial.state)
        return "complete" if (earlier or trial.reports[-1])["epoch"] >= self.epochs else "continue"

    def _compare(self, trial: TrialState, epoch: int, earlier: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Record if an epoch that is repeated after an interruption comes out differently. The first report counts."""
        for name in (METRIC, "validation_loss", "test_accuracy"):
            recorded, seen = earlier["metrics"].get(name), metrics.get(name)
            if recorded != seen:
                self.record.mismatch(trial.number, epoch, name, recorded, seen)
                break

    def checkpoint(self, number: int, epoch: int, path: str) -> None:
        self.record.checkpoint(number, epoch, path)

    def take_back(self, number: int, without_progress: bool = False) -> bool:
        """Requeue a trial whose workers died, unless it is finished. Returns False if it made no progress since it was
        handed out, unless it may be requeued without any."""
        trial = self.record.trials[number]
        if self.is_finished(trial):
            self.running.discard(number)
            return True
        if trial.epoch == self._begun_at[number] and not without_progress:
            return False
        bisect.insort(self._unfinished, number)
        self.running.discard(number)
        return True

    def fail(self, number: int, reason: str) -> None:
        """Mark a trial as failed that ended without a report."""
        if self.record.trials[number].state == "running":
            self._order.fail(number, reason)
        self.running.discard(number)
        self._on_change()

    @property
    def total(self) -> int:
        return self.proposer.total(self.record)

    @property
    def protected(self) -> int:
        """How many of the first trials are never stopped early."""
        return self.proposer.protected

    @property
    def waiting(self) -> int:
        """How many interrupted trials have not been handed out again."""
        return len(self._to_continue())

    def _to_continue(self) -> list[int]:
        """Return the interrupted trials. Some may have been stopped meanwhile, at a rung that had waited."""
        return [number for number in self._unfinished if not self.is_finished(self.record.trials[number])]

    @property
    def may_stop(self) -> bool:
        return bool(self.rungs)

    @property
    def complete(self) -> bool:
        """Whether all trials are finished."""
        trials = self.record.trials
        return len(trials) >= self.total and all(self.is_finished(trial) for trial in trials.values())
