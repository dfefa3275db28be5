"""Progress, speed and time left of trials, computed from their records."""

import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdstudy.analysis.number_text import significant
from kdstudy.store.record import METRIC, Record, TrialState

LEAST_SECONDS = 8.0  # of reports before estimating the time left
WINDOW = 600.0  # seconds over which the pace is measured
LEAST_REPORTS = 8  # minimum number of reports in the window
LATEST = 50  # trials used to measure the pace


def runs_left(trials: Mapping[int, TrialState], wanted: int, epochs: int, protected: int, may_stop: bool) -> float:
    """Estimate how much work a stage has left, in full runs of `epochs` epochs.

    Running trials count with their remaining epochs, future ones with the mean length of past ones. protected: how
    many of the first trials, besides trial 0, are never stopped early.
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
    """Estimate the seconds per run of `epochs` epochs, as the median of the latest trials; None if it is too early.

    Based on the time between a trial's reports or, if a whole trial reports once, since its start. The first of several
    reports says nothing: the start of its worker, which takes long, comes before it. since: Unix time at
    which the driver started; earlier reports are ignored."""
    latest = [trial for trial in trials if trial.reports and trial.reports[-1]["time"] >= since][-LATEST:]
    reports = [[report for report in trial.reports if report["time"] >= since] for trial in latest]
    spans = [(last["time"] - first["time"], last["epoch"] - first["epoch"]) for first, *_, last in
             (own for own in reports if len(own) > 1) if last["epoch"] > first["epoch"]]
    spans = spans or [(own[0]["time"] - trial.begun, trial.epoch) for trial, own in zip(latest, reports, strict=True)
                      if trial.begun >= since and trial.epoch >= epochs]
    return statistics.median(epochs * seconds / count for seconds, count in spans) if spans else None


def seconds_left(left: float, done: float, seconds: float) -> float | None:
    """Estimate the seconds for `left` full runs, given that `done` runs took `seconds`; None if it is too early."""
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
    paced_by: Mapping[str, float]

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
        epoch = next((epoch_seconds[other] * factor for other, factor in one.paced_by.items()
                      if other in epoch_seconds), None)
        seconds += one.full_runs * (slowest if epoch is None else epoch * one.epochs)
    return seconds / max(1, running)


@dataclass(frozen=True)
class Pace:
    """A stage's recent progress: seconds, number of trials that ended, and epochs run by trial number."""

    seconds: float
    ended: int
    epochs: dict[int, int]


def pace(record: Record) -> Pace | None:
    """Measure the pace between two reports of the current driver, by its own clock; None if it is too early."""
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
    """Return a trial's epoch before its last `last` reports."""
    return trial.reports[-last - 1]["epoch"] if len(trial.reports) > last else 0


def best(trials: Iterable[TrialState]) -> TrialState | None:
    """Return the trial whose last report has the best validation accuracy, or None if no trial has one."""
    scored = [trial for trial in trials if trial.metric(METRIC) is not None]
    return max(scored, key=lambda trial: trial.metric(METRIC), default=None)


def show_parameters(parameters: dict[str, Any]) -> str:
    """Format parameters as T=4, alpha=0.5, lr=0.001."""
    names = {"temperature": "T", "alpha": "alpha", "lr": "lr"}
    shown = [f"{names.get(name, name)}={significant(value) if isinstance(value, float) else value}"
             for name, value in parameters.items()]
    return ", ".join(shown)
