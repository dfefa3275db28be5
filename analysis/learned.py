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


@dataclass(frozen=True)
class FailedRun:
    """A confirmation run that failed to learn. accuracy: on the test images, in percent."""

    arm: str
    configuration: str
    index: int  # among the row's runs, which are paired across rows
    seed: int
    accuracy: float


def at_chance(accuracy: float, images: int, classes: int) -> bool:
    """Whether an accuracy (0 to 1) could be that of guessing: its Wilson 95 % interval reaches down to 1 / classes."""
    return wilson_interval(accuracy, images)[0] <= 1 / classes


def failed_runs(study: StudyFiles) -> list[FailedRun]:
    """The confirmation runs at chance, or with less than half of what the median run has above chance.

    None where the median run itself is at chance: then nothing has been learned, and no run stands out.
    """
    classes = len(study.description["data"]["classes"])
    accuracies = {key: right.mean(1) for key, right in study.confirmed.items()}
    images = next(iter(study.confirmed.values())).shape[1]
    median = float(np.median(np.concatenate(list(accuracies.values()))))
    if at_chance(median, images, classes):
        return []
    least = 1 / classes + ENOUGH * (median - 1 / classes)
    found = []
    for row in study.confirmation["rows"]:
        for index, accuracy in enumerate(accuracies[row["arm"], row["configuration"]]):
            if accuracy < least or at_chance(float(accuracy), images, classes):
                found.append(FailedRun(row["arm"], row["configuration"], index, study.done("confirm")["seeds"][index],
                                       100 * float(accuracy)))
    return found


def rises(study: StudyFiles) -> dict[str, float]:
    """The searches whose accuracy still rose at the end: the mean rise over the last fifth of the epochs, in points.

    Of the trials at the full budget. It counts where it is above one point, above a twentieth of what these trials
    reached above chance, and above twice its standard error.
    """
    budget, classes = study.description.get("epochs"), len((study.description.get("data") or {}).get("classes", []))
    found = {}
    for arm in SEARCH_STAGES if budget and classes else ():
        trials = study.trials[(study.trials["stage"] == arm) & (study.trials["ended"] == "complete")]
        curves = study.curves[(study.curves["stage"] == arm) & study.curves["trial"].isin(trials["trial"])]
        reached = 100 * curves.pivot_table(index="trial", columns="epoch", values="validation_accuracy", aggfunc="last")
        earlier = [epoch for epoch in reached.columns if epoch <= (1 - LAST_PART) * budget]
        if len(reached) < 2 or budget not in reached or not earlier:
            continue
        rise = (reached[budget] - reached[earlier[-1]]).dropna()
        mean, error = float(rise.mean()), float(rise.std(ddof=1) / np.sqrt(len(rise)))
        above = float(reached[budget].mean()) - 100 / classes
        if mean > max(SMALLEST_RISE, LARGE_RISE * above, 2 * error):
            found[arm] = mean
    return found
