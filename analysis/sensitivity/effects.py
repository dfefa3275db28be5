"""What each parameter does: its share of the variance, its effect curve, and the map of two of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdstudy.analysis.sensitivity.grid import Grid, bounds

CURVE_COLUMNS = ["parameter", "value", "place", "axis", "dependence", "dependence_low", "dependence_high", "best",
                 "best_low", "best_high"]
NEAR_BEST = 5.0  # percentage points below the best, the part of the space where a parameter's share matters


def main_effects(grid: Grid, near: float | None = None) -> pd.DataFrame:
    """The shares of the variance over the space that each parameter, and each pair beyond its two, explains.

    Columns parameter, other (None for a main effect), share (0 to 1), low, high (at CONFIDENCE). Functional analysis of
    variance (Sobol 1993; Hutter, Hoos and Leyton-Brown 2014), uniform over the ranges on their own scales; with `near`,
    over the part of the space within that many percentage points of the best.
    """
    weights = grid.volume if near is None else grid.volume * (grid.mean >= grid.mean[grid.argmax()] - near)
    weights = weights / weights.sum()

    def explained(*names: str) -> np.ndarray:
        """The variance of the mean given these parameters, for each draw."""
        return _variance(grid.along(names, grid.draws, weights), grid, weights, names)

    names = list(grid.axes)
    total = np.maximum(_variance(grid.draws, grid, weights, names), 1e-12)
    alone = {name: explained(name) for name in names}
    rows = [(name, None, alone[name] / total) for name in names]
    for one, two in _pairs(names):
        both = total if len(names) == 2 else explained(one, two)  # of two parameters, the pair is what is left
        rows.append((one, two, np.maximum(both - alone[one] - alone[two], 0) / total))
    return pd.DataFrame([{"parameter": one, "other": two, "share": shares.mean(), **bounds(shares)}
                         for one, two, shares in rows])


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(one, two) for index, one in enumerate(names) for two in names[index + 1:]]


def _variance(values: np.ndarray, grid: Grid, weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
    others = tuple(index for index, name in enumerate(grid.axes) if name not in names)
    marginal = weights.sum(others, keepdims=True)[..., None]
    axes = tuple(range(values.ndim - 1))
    mean = (values * marginal).sum(axes, keepdims=True)
    return ((values - mean) ** 2 * marginal).sum(axes)


def curves(grid: Grid) -> pd.DataFrame:
    """Accuracy in percent against each parameter: the mean over the others, and the best that they allow.

    Columns parameter, value, place (its index on the axis), axis, dependence, dependence_low, dependence_high, best,
    best_low, best_high (at CONFIDENCE). The best is where the posterior mean is highest among the points that trials
    support; without any, all numbers of that value are missing.
    """
    rows = []
    for axis, name in enumerate(grid.axes):
        dependence = grid.along([name], grid.draws, grid.volume).reshape(len(grid.axes[name]), -1)
        for place, value in enumerate(grid.axes[name]):
            index = grid.argmax(**{name: place})
            row = {"parameter": name, "value": value, "place": place, "axis": axis}
            if index is not None:
                average, best = dependence[place], grid.draws[index]
                row |= {"dependence": average.mean(), **_prefixed("dependence", bounds(average)),
                        "best": grid.mean[index], **_prefixed("best", bounds(best))}
            rows.append(row)
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _prefixed(name: str, ends: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_{end}": value for end, value in ends.items()}


def best_map(grid: Grid, first: str, second: str) -> pd.DataFrame:
    """Per pair of values the best posterior mean over all other parameters, percent: columns first, second, best.

    The best among the points that trials support; missing where there is none.
    """
    others = tuple(index for index, name in enumerate(grid.axes) if name not in (first, second))
    best = np.where(grid.supported, grid.mean, -np.inf).max(others)
    best = np.where(np.isfinite(best), best, np.nan)
    if list(grid.axes).index(first) > list(grid.axes).index(second):
        best = best.T
    return pd.DataFrame([{first: one, second: two, "best": best[i, j]}
                         for i, one in enumerate(grid.axes[first]) for j, two in enumerate(grid.axes[second])])
