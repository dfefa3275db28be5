"""The order in which a search takes its trials' reports: as they come in, or in virtual time."""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kdstudy.errors import StudyFailedError
from kdstudy.search.rungs import Rungs
from kdstudy.search.runs import Proposer
from kdstudy.search.virtual_time import Decision, VirtualTime
from kdstudy.store.record import METRIC, Record, TrialState


class Order(Protocol):
    """Enters proposals, reports and failures in the record, and what is decided upon them."""

    def propose(self, proposer: Proposer) -> TrialState | None:
        """Record and return the next trial. Returns None if there are no more, or if it depends on running trials."""

    def report(self, trial: TrialState, epoch: int, metrics: dict[str, Any], failure: str | None,
               where: str | None) -> None:
        """Record a trial's report; its state then says what was decided, if anything was."""

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial ended without a report."""


class AtOnce:
    """Decides on every report when it comes in."""

    def __init__(self, record: Record, rungs: list[int], epochs: int, reduction_factor: int):
        self._record, self._epochs, self._rungs = record, epochs, Rungs(rungs, reduction_factor)
        for number, report in record.reports_in_order():
            accuracy = report["metrics"].get(METRIC)
            if report["decision"] != "failed" and accuracy is not None:
                self._rungs.passes(number, report["epoch"], accuracy)

    def propose(self, proposer: Proposer) -> TrialState | None:
        trial = proposer(len(self._record.trials), self._record)
        if trial is not None:
            self._record.add_trial(trial)
        return trial

    def report(self, trial: TrialState, epoch: int, metrics: dict[str, Any], failure: str | None,
               where: str | None) -> None:
        decision = "failed" if failure else self._decide(trial, epoch, metrics.get(METRIC))
        self._record.report(trial.number, epoch, decision, metrics, failure, where)

    def _decide(self, trial: TrialState, epoch: int, accuracy: float | None) -> str:
        passes = accuracy is None or self._rungs.passes(trial.number, epoch, accuracy)
        if epoch >= self._epochs:
            return "complete"
        return "continue" if passes or trial.protected else "stop"

    def fail(self, number: int, reason: str) -> None:
        self._record.fail(number, reason)


@dataclass(frozen=True)
class Known:
    """What a proposal may depend on: the trials as they are at its moment in virtual time."""

    trials: dict[int, TrialState]
    prior: list[TrialState]


class InVirtualTime:
    """Decides in virtual time. Which trials are proposed and stopped depends on the settings and the trials' metrics.

    A trial that is tried again after a failure has ended in virtual time: no rung takes note of it or stops it.
    """

    def __init__(self, record: Record, rungs: list[int], epochs: int, reduction_factor: int, workers: int,
                 protected: int):
        self._record, self._epochs = record, epochs
        self._time = VirtualTime(workers, protected, rungs, epochs, reduction_factor)
        for trial in record.trials.values():
            if self._time.next_start() != trial.start:
                raise StudyFailedError(f"{record.path} is damaged: trial {trial.number} cannot have begun when it "
                                       f"says; restore it from a copy, or remove {record.path.parent} to search again")
            self._time.begin()
            self._take(trial)
            self._settle()  # when the next one began depends on what was decided

    def _take(self, trial: TrialState) -> None:
        """Enter what the record has of a trial."""
        for report in trial.reports:
            if report["decision"] != "failed" and report["epoch"] <= _last_of_first_try(trial):
                self._time.reach(trial.number, report["epoch"], report["metrics"][METRIC])
        if trial.decided:
            self._time.repeat(Decision(trial.number, trial.decided, _last_decision(trial)))
        if trial.state == "failed" or trial.retried_from is not None:
            self._time.fail(trial.number)

    def propose(self, proposer: Proposer) -> TrialState | None:
        trials = self._record.trials
        if len(trials) >= proposer.total(self._record) or (start := self._time.next_start()) is None:
            return None
        ended = self._time.ended_before_next()
        known = {number: _as_ended(trial) if number in ended
                 else replace(trial, reports=[], state="running", reason=None) for number, trial in trials.items()}
        trial = proposer(len(trials), Known(known, self._record.prior))
        if trial is not None:
            trial.start = start
            self._record.add_trial(trial)
            self._time.begin()
        return trial

    def report(self, trial: TrialState, epoch: int, metrics: dict[str, Any], failure: str | None,
               where: str | None) -> None:
        is_retried = trial.retried_from is not None
        done = is_retried and epoch >= self._epochs
        decision = "failed" if failure else "complete" if done else "continue"
        self._record.report(trial.number, epoch, decision, metrics, failure, where)
        if is_retried:
            return
        if failure:
            self._time.fail(trial.number)
        else:
            self._time.reach(trial.number, epoch, metrics[METRIC])
        self._settle()

    def fail(self, number: int, reason: str) -> None:
        self._record.fail(number, reason)
        self._time.fail(number)
        self._settle()

    def _settle(self) -> None:
        for decision in self._time.settle():
            self._record.decide(decision.number, decision.epoch, decision.decision)


def _last_decision(trial: TrialState) -> str:
    if trial.state == "complete" and trial.retried_from is None:  # else no rung or proposal takes note of it
        return "complete"
    return "stop" if trial.state == "stopped" else "continue"


def _as_ended(trial: TrialState) -> TrialState:
    """Return a trial as it was when it ended in virtual time, before it was tried again."""
    if trial.retried_from is None or trial.state == "stopped":
        return trial
    reports = [report for report in trial.reports if report["epoch"] <= trial.retried_from]
    return replace(trial, reports=reports, state="failed")


def _last_of_first_try(trial: TrialState) -> float:
    """Return the epoch up to which a trial's reports count for decisions on others."""
    return math.inf if trial.retried_from is None else trial.retried_from
