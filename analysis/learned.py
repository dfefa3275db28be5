"""Whether runs learned at all, and whether they had come to an end: what a gain cannot be read from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdstudy.analysis.significance import wilson_interval
from kdstudy.analysis.study_files import SEARCH_STAGES, StudyFiles

ENOUGH = 0.5  # of what the median run reached above chance; a run below that has failed to learn
LAST_PART = 0.2  # of the epochs, over which accuracy should hardly rise
LARGE_RISE = 0.05  # of what trials reached above chance
SMALLEST_RISE = 1.0  # percentage points
MOST_NAMED = 3  # runs that failed to learn


@dataclass(frozen=True)
class FailedRun:
    """A confirmation run that failed to learn. accuracy: on the test images, in percent."""

    arm: str
    configuration: str
    index: int  # among the row's runs, which are paired across rows
    seed: int
    accuracy: float


def at_chance(accuracy: float, images: int, chance: float) -> bool:
    """Whether an accuracy could be that of guessing (both 0 to 1): its Wilson 95 % interval reaches down to it."""
    return wilson_interval(accuracy, images)[0] <= chance


def failed_runs(study: StudyFiles) -> list[FailedRun]:
    """The confirmation runs that diverged, are at chance, or have less than half of what the median has above chance.

    Rows may share their runs: then a run counts once, in a row of the primary comparison where that has it.
    Where the median run itself is at chance, nothing has been learned, and only runs that diverged stand out.
    """
    found = {}
    primary = ("distilled", study.primary), ("baseline", "tuned")
    rows = sorted(study.confirmation["rows"], key=lambda row: (row["arm"], row["configuration"]) not in primary)
    for row in rows:
        failed = study.failed_runs(row["stage"])
        for index, (run, right) in enumerate(zip(row["runs"], study.confirmed[row["arm"], row["configuration"]],
                                                 strict=True)):
            one = FailedRun(row["arm"], row["configuration"], index, study.done("confirm")["seeds"][index],
                            100 * float(right.mean()))
            found.setdefault((row["stage"], run), (one, run in failed))
    images = next(iter(study.confirmed.values())).shape[1]
    median = float(np.median([one.accuracy for one, _ in found.values()])) / 100
    least = 0.0 if at_chance(median, images, study.chance) else study.chance + ENOUGH * (median - study.chance)

    def has_failed(run: FailedRun) -> bool:
        return bool(least) and (run.accuracy / 100 < least or at_chance(run.accuracy / 100, images, study.chance))

    order = [(row["arm"], row["configuration"]) for row in study.confirmation["rows"]]
    return sorted((one for one, diverged in found.values() if diverged or has_failed(one)),
                  key=lambda run: (order.index((run.arm, run.configuration)), run.index))


def in_comparison(study: StudyFiles, failed: list[FailedRun]) -> list[FailedRun]:
    """Those of the runs that failed to learn that are in the comparison which is the study's answer."""
    pair = {("distilled", study.primary), ("baseline", "tuned")}
    return [run for run in failed if (run.arm, run.configuration) in pair]


def which_failed(runs: list[FailedRun]) -> str:
    """distilled tuned, seed 103: 25.0 %; and so on, the first few."""
    named = [f"{run.arm} {run.configuration}, seed {run.seed}: {run.accuracy:.1f} %" for run in runs[:MOST_NAMED]]
    more = [f"{len(runs) - MOST_NAMED} more"] if len(runs) > MOST_NAMED else []
    return "; ".join([*named, *more])


@dataclass(frozen=True)
class Rise:
    """The mean rise of validation accuracy between two epochs, in percentage points."""

    points: float
    first: int
    last: int


def rises(study: StudyFiles) -> dict[str, Rise]:
    """The searches whose accuracy still rose at the end: over the last fifth of the epochs, from report to report.

    Of the trials at the full budget. It counts where it is above one point, above a twentieth of what these trials
    reached above chance, and above twice its standard error. Where reports are so rare that the last one before the
    last fifth lies in the first half, nothing is said. The confirmation must be done.
    """
    budget = study.description["epochs"]
    found: dict[str, Rise] = {}
    for arm in SEARCH_STAGES:
        trials = study.trials[(study.trials["stage"] == arm) & (study.trials["ended"] == "complete")]
        curves = study.curves[(study.curves["stage"] == arm) & study.curves["trial"].isin(trials["trial"])]
        reached = 100 * curves.pivot_table(index="trial", columns="epoch", values="validation_accuracy", aggfunc="last")
        earlier = [epoch for epoch in reached.columns if epoch <= (1 - LAST_PART) * budget]
        if len(reached) < 2 or budget not in reached or not earlier or earlier[-1] < budget / 2:
            continue
        rise = (reached[budget] - reached[earlier[-1]]).dropna()
        mean, error = float(rise.mean()), float(rise.std(ddof=1) / np.sqrt(len(rise)))
        above = float(reached[budget].mean()) - 100 * study.chance
        if mean > max(SMALLEST_RISE, LARGE_RISE * above, 2 * error):
            found[arm] = Rise(mean, int(earlier[-1]), int(budget))
    return found
