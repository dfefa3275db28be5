"""Where training fails: trials that ended at chance or diverged, which are not points of the surface.

A surface through them would bend far away from them: between a trial at 80 % and one at chance, a smooth process sees a
slope where there is a cliff. So they make a part of their own, which says of a point whether training learns there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdstudy.analysis.learned import at_chance
from kdstudy.analysis.significance import wilson_interval

BARELY = 0.1  # of what the median has above chance; a trial with less has failed
SAME = 1e-12  # squared distances below this are those of the same point
PENALTY = 0.02  # of the squared weights of the logistic regression, per trial


class Failures:
    """The trials that learned and those that failed, and where training fails.

    learned, failed: places (n, d) and (k, d) of their parameters, 0 to 1.
    chance: the accuracy of a failed trial, 0 to 1.

    Training mostly fails beyond some value of one parameter, such as a learning rate. So each parameter alone is tried
    as the direction in which it begins to fail, and where none tells the trials apart, a logistic regression on all of
    them and their squares. Between the last trial that learned and the first that failed nothing is known: half of the
    way counts as failing, and none of it as learning. Where no direction tells all trials apart, the parameters do not
    explain the failures, and training counts as failing nowhere but at the very trials that did.
    """

    def __init__(self, learned: np.ndarray, failed: np.ndarray, chance: float):
        self.learned, self.failed, self.chance = learned, failed, chance
        if not len(learned):
            self.borders: list[_Border] = []
            return
        single = [_Border.of(weights, learned, failed) for weights in _single_directions(learned.shape[1])]
        features = _features(np.vstack([learned, failed]))
        weights = _logistic(features, np.repeat([0.0, 1.0], [len(learned), len(failed)]))
        joint = _Border.of(weights, learned, failed)
        self.borders = ([border for border in single if border.tells_apart]
                        or [border for border in [joint] if border.tells_apart])

    @property
    def logit(self) -> float:
        return math.log(self.chance / (1 - self.chance))

    def fails(self, places: np.ndarray) -> np.ndarray:
        """Where training more probably fails than learns, (m,) bool, of places (m, d); also at every failed trial."""
        near_good, near_bad = self._nearest(places)
        at_failed = (near_bad < SAME) & (near_good > near_bad)
        if not self.borders:
            return at_failed
        widest = max(self.borders, key=lambda border: border.first - border.last)
        return (_features(places) @ widest.weights > (widest.first + widest.last) / 2) | at_failed

    def learns(self, places: np.ndarray) -> np.ndarray:
        """Where training surely learns, (m,) bool: no further than a trial that did, and nearest to one that did."""
        near_good, near_bad = self._nearest(places)
        learns = near_good <= near_bad
        for border in self.borders:
            learns &= _features(places) @ border.weights <= border.last + 1e-9
        return learns

    def _nearest(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The squared distances (m,) from each place to the nearest trial that learned, and to the nearest that failed.
        """
        return _nearest(places, self.learned), _nearest(places, self.failed)


@dataclass(frozen=True)
class _Border:
    """Where training begins to fail along a direction of the features."""

    weights: np.ndarray
    last: float  # along the direction, the last trial that learned
    first: float  # and the first that failed

    @classmethod
    def of(cls, weights: np.ndarray, learned: np.ndarray, failed: np.ndarray) -> _Border:
        good, bad = _features(learned) @ weights, _features(failed) @ weights
        return cls(weights, float(good.max()), float(bad.min()))

    @property
    def tells_apart(self) -> bool:
        return self.last < self.first


def _single_directions(count: int) -> np.ndarray:
    """Each of so many parameters upwards and downwards, as weights of the features."""
    return np.vstack([side * np.eye(2 * count)[:count] for side in (1, -1)])


def _nearest(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The squared distance (m,) from each place to the nearest of the others."""
    return np.min([((places - other) ** 2).sum(1) for other in others], axis=0)


def _features(places: np.ndarray) -> np.ndarray:
    """Places and their squares, around the middle of each range: (n, 2 d)."""
    around = 2 * places - 1
    return np.hstack([around, around**2])


def _logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weights (d,) of a penalised logistic regression with an intercept, by Newton's method."""
    inputs = np.column_stack([x, np.ones(len(x))])
    penalty = np.diag([PENALTY] * x.shape[1] + [1e-6]) * len(x)
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        share = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        slope = inputs.T @ (share - y) + penalty @ weights
        step = np.linalg.solve((inputs * (share * (1 - share))[:, None]).T @ inputs + penalty, slope)
        weights = weights - step
        if abs(step).max() < 1e-8:
            break
    return weights[:-1]


def failed_trials(reports: pd.DataFrame, images: int, chance: float | None) -> set[int]:
    """The numbers of the trials that failed to learn.

    Those that diverged, and those whose last report is at chance at an epoch by which the median of the trials that
    learned was clearly above it: a slow start is no failure. So is one with less than BARELY of what that median has
    above chance. reports: trial, epoch,
    accuracy (a share) and, where known, diverged. chance: None where it is not known, and then only these have failed.
    """
    diverged = set(reports.loc[reports["diverged"].astype(bool), "trial"]) if "diverged" in reports else set()
    reports = reports[~reports["trial"].isin(diverged)]
    if chance is None or reports.empty:
        return diverged
    ordered = reports.sort_values(["trial", "epoch"])
    last = ordered.drop_duplicates("trial", keep="last").set_index("trial")
    low = last["accuracy"].map(lambda share: at_chance(share, images, chance))
    sound = ordered[~ordered["trial"].isin(last.index[low])]
    median = sound.groupby("epoch")["accuracy"].median()
    begun = [epoch for epoch, share in median.items() if not at_chance(share, images, chance)]
    if not begun:
        return diverged
    above = np.interp(last["epoch"], median.index, median) - chance
    at_most = last["accuracy"].map(lambda share: wilson_interval(share, images)[1])
    clearly = at_most - chance < above / 2
    down = (low | (last["accuracy"] - chance < BARELY * above)) & clearly & (last["epoch"] >= min(begun))
    return diverged | {int(trial) for trial in last.index[down]}
