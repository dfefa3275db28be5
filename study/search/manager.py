"""The trial manager: hands out trials, decides whether they continue, and records every decision.

`TrialManager` does not use Ray actors, so tests and simulations can drive it directly. `kdstudy.tune.tuner` connects
it to Ray Tune.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from kdstudy.search.rungs import Rungs
from kdstudy.search.runs import Proposer
from kdstudy.store.record import METRIC, Record, TrialState


class TrialManager:
    """Hands out trials and decides after each report. Both are recorded before anything else happens.

    has_results: whether a completed trial's result files exist. If given, a trial is finished only once its last
    epoch's checkpoint is recorded and these files exist. scored: whether every report must include an accuracy.
    """

    def __init__(self, record: Record, proposer: Proposer, *, epochs: int, rungs: Iterable[int] = (),
                 reduction_factor: int = 3, has_results: Callable[[TrialState], bool] | None = None,
                 scored: bool = True, on_change: Callable[[], None] | None = None):
        self.proposer, self.epochs, self.has_results = proposer, epochs, has_results
        self.rungs, self._reduction_factor = list(rungs), reduction_factor
        self._on_change, self._scored = on_change or (lambda: None), scored
        self._begin(record)

    def _begin(self, record: Record) -> None:
        self.record = record
        self._rungs = Rungs(self.rungs, self._reduction_factor)
        self._replay_rungs()
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
        return trial.state != "running"

    def next(self) -> TrialState | None:
        """Return the next trial to run, interrupted ones first, or None if there are no more."""
        if self._unfinished:
            trial = self.record.trials[self._unfinished.pop(0)]
        else:
            trial = self.proposer(len(self.record.trials), self.record)
            if trial is None:
                return None
            self.record.add_trial(trial)
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
        earlier = trial.recorded(epoch)
        if earlier is not None and not failure:
            decision = self._repeated(trial, epoch, earlier, metrics)
        else:
            decision = "failed" if failure else self._decide(trial, epoch, metrics.get(METRIC))
            self.record.report(number, epoch, decision, metrics, failure, where)
        if decision != "continue":
            self.running.discard(number)
        self._on_change()
        return decision

    def _decide(self, trial: TrialState, epoch: int, accuracy: float | None) -> str:
        passes = accuracy is None or self._rungs.passes(trial.number, epoch, accuracy)
        if epoch >= self.epochs:
            return "complete"
        return "continue" if passes or trial.protected else "stop"

    def _repeated(self, trial: TrialState, epoch: int, earlier: dict[str, Any], metrics: dict[str, Any]) -> str:
        """Return the recorded decision for an epoch that was repeated after an interruption; record any mismatch."""
        for name in (METRIC, "validation_loss"):
            recorded, seen = earlier["metrics"].get(name), metrics.get(name)
            if recorded != seen:
                self.record.mismatch(trial.number, epoch, name, recorded, seen)
                break
        return earlier["decision"]

    def checkpoint(self, number: int, epoch: int, path: str) -> None:
        self.record.checkpoint(number, epoch, path)

    def take_back(self, number: int, without_progress: bool = False) -> bool:
        """Requeue a trial whose workers died. Returns False if it made no progress since it was handed out, unless it
        may be requeued without any."""
        trial = self.record.trials[number]
        if self.is_finished(trial) or (trial.epoch == self._begun_at[number] and not without_progress):
            return False
        self._unfinished.append(number)
        self.running.discard(number)
        return True

    def fail(self, number: int, reason: str) -> None:
        """Mark a trial as failed that ended without a report."""
        if self.record.trials[number].state == "running":
            self.record.fail(number, reason)
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
        return len(self._unfinished)

    @property
    def may_stop(self) -> bool:
        return bool(self.rungs)

    @property
    def complete(self) -> bool:
        """Whether all trials are finished."""
        trials = self.record.trials
        return len(trials) >= self.total and all(self.is_finished(trial) for trial in trials.values())

    def _replay_rungs(self) -> None:
        """Enter all recorded reports into the rungs, in chronological order."""
        for trial, report in self.record.reports_in_order():
            accuracy = report["metrics"].get(METRIC)
            if report["decision"] != "failed" and accuracy is not None:
                self._rungs.passes(trial, report["epoch"], accuracy)
