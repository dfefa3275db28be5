"""How far trials are, how fast they go on and how long they will take, from their records alone."""

import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdstudy.store.record import METRIC, Record, TrialState

LEAST_SECONDS = 8.0  # of reports before a guess at the time left
WINDOW = 600.0  # seconds that a pace is taken over
LEAST_REPORTS = 8  # or as many reports, where they are rare
LATEST = 50  # trials whose pace is looked at


def runs_left(trials: Mapping[int, TrialState], wanted: int, epochs: int, protected: int, may_stop: bool) -> float:
    """How many full runs a stage still expects: of its running trials the rest, of those to come what is typical.

    protected: how many of the first trials, besides trial 0, are never stopped.
    """
    ended = [trial.epoch for trial in trials.values() if trial.state != "running" and not trial.protected]
    typical = sum(ended) / len(ended) if ended else epochs * (0.5 if may_stop else 1.0)
    left = 0.0
    for number in range(wanted):
        trial = trials.get(number)
        if trial is not None and trial.state != "running":
            continue
        whole = trial.protected if trial else number <= protected
        left += max((epochs if whole else typical) - (trial.epoch if trial else 0), 0)
    return left / epochs


def seconds_per_run(trials: Iterable[TrialState], epochs: int, since: float = 0.0) -> float | None:
    """What so many epochs take a trial: the median of the latest, by the time between their reports, or, where each
    reports once, since they were handed out. since: when the driver began; nobody worked before. None before there is
    any report."""
    latest = [trial for trial in trials if trial.reports and trial.reports[-1]["time"] >= since][-LATEST:]
    reports = [[report for report in trial.reports if report["time"] >= since] for trial in latest]
    spans = [(last["time"] - first["time"], last["epoch"] - first["epoch"]) for first, *_, last in
             (own for own in reports if len(own) > 1) if last["epoch"] > first["epoch"]]
    spans = spans or [(own[0]["time"] - trial.begun, trial.epoch) for trial, own in zip(latest, reports, strict=True)
                      if trial.begun >= since and trial.epoch]
    return statistics.median(epochs * seconds / count for seconds, count in spans) if spans else None


def seconds_left(left: float, done: float, seconds: float) -> float | None:
    """For `left` full runs, where `done` of them took `seconds`; None before that can be told."""
    return left * seconds / done if done > 0 and seconds >= LEAST_SECONDS else None


@dataclass(frozen=True)
class Pending:
    """What a stage will run, for as long as it has not begun.

    runs: at most, of which the first `protected` are never stopped. epochs: of each. may_stop: whether the others may
    be. paced_by: stages whose seconds per epoch, times a factor, stand in for its own.
    """

    runs: int
    epochs: float
    protected: int
    may_stop: bool
    paced_by: tuple[tuple[str, float], ...]

    @property
    def full_runs(self) -> float:
        """How many runs' worth of epochs to expect."""
        return runs_left({}, self.runs, 1, self.protected - 1, self.may_stop)  # which is besides trial 0


def study_seconds_left(runs: Mapping[str, float], run_seconds: Mapping[str, float], epoch_seconds: Mapping[str, float],
                       pending: Mapping[str, Pending], running: int) -> float | None:
    """The time left of a whole study, if `running` trials go on running at a time; None before anything is known.

    runs: full runs left of the stages that have begun. run_seconds: of a full run, as far as it is known; a stage of
    which nothing is known yet counts like the slowest of the others. epoch_seconds: of all stages that have run.
    pending: the stages that have not begun.
    """
    if not run_seconds:
        return None
    slowest = max(run_seconds.values())
    seconds = sum(left * run_seconds.get(stage, slowest) for stage, left in runs.items())
    for one in pending.values():
        epoch = next((epoch_seconds[other] * factor for other, factor in one.paced_by if other in epoch_seconds), None)
        seconds += one.full_runs * (slowest if epoch is None else epoch * one.epochs)
    return seconds / max(1, running)


@dataclass(frozen=True)
class Pace:
    """What a stage did lately: over how many seconds, which trials ended, and how many epochs each of them ran."""

    seconds: float
    ended: int
    epochs: dict[int, int]


def pace(record: Record) -> Pace | None:
    """Between two reports of the last driver's, by the clock that wrote them; None before that can be told."""
    since = record.session.get("time", 0.0)
    times = sorted(report["time"] for trial in record.trials.values() for report in trial.reports
                   if report["time"] >= since)
    if len(times) < 2:
        return None
    first = min(bisect_left(times, times[-1] - WINDOW), max(0, len(times) - LEAST_REPORTS))
    begin, seconds = times[first], times[-1] - times[first]
    if seconds < LEAST_SECONDS:
        return None
    recent = {number: [report for report in trial.reports if report["time"] > begin]
              for number, trial in record.trials.items()}
    epochs = {number: trial.epoch - _epoch_before(trial, len(recent[number]))
              for number, trial in record.trials.items() if recent[number]}
    ended = sum(report["decision"] != "continue" for reports in recent.values() for report in reports)
    return Pace(seconds, ended, epochs)


def _epoch_before(trial: TrialState, last: int) -> int:
    """A trial's epoch before its last so many reports."""
    return trial.reports[-last - 1]["epoch"] if len(trial.reports) > last else 0


def best(trials: Iterable[TrialState]) -> TrialState | None:
    """The trial whose last report has the best validation accuracy; None where none has any."""
    scored = [trial for trial in trials if trial.metric(METRIC) is not None]
    return max(scored, key=lambda trial: trial.metric(METRIC), default=None)


def show_parameters(parameters: dict[str, Any]) -> str:
    """T=4, alpha=0.5, lr=0.001"""
    names = {"temperature": "T", "alpha": "alpha", "lr": "lr"}
    shown = [f"{names.get(name, name)}={value:.3g}" if isinstance(value, float) else f"{names.get(name, name)}={value}"
             for name, value in parameters.items()]
    return ", ".join(shown)
