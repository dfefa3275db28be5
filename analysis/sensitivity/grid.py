"""The searched space as a grid of points, with the process read off at the budget on all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.ndimage import label

from kdstudy.analysis.sensitivity.budget_model import CONFIDENCE, BudgetModel
from kdstudy.analysis.sensitivity.space import Dimension

MOST_POINTS = 2200
MOST_PER_AXIS, FEWEST_PER_AXIS = 41, 3
# How much wider intervals are because points were chosen as the best of many, by simulation (tests/known_answers.py):
CHOSEN = 1.35  # of the accuracy at such a point
CHOSEN_BOTH = 1.1  # of what two such points differ by; both were chosen, so much of what is too high in them cancels


@dataclass(frozen=True)
class Grid:
    """Accuracies in percent at every point; the axes are in the order of the space.

    Only `supported` points lie near enough to trials to be named as the best of anything.
    """

    axes: dict[str, list[Any]]
    weights: dict[str, np.ndarray]
    mean: np.ndarray  # (k1, ..., kd)
    draws: np.ndarray  # (k1, ..., kd, DRAWS)
    supported: np.ndarray  # (k1, ..., kd), bool

    @classmethod
    def of(cls, model: BudgetModel, default: dict[str, Any]) -> Grid:
        """The process on a grid that contains the default values."""
        axes = axes_of(model.space, default)
        points = dict(zip(axes, product(list(axes.values())), strict=True))
        mean, draws, supported = model.read_off(points)
        shape = tuple(map(len, axes.values()))
        weights = {name: dimension.weights(axes[name]) for name, dimension in model.space.items()}
        return cls(axes, weights, mean.reshape(shape), draws.reshape(*shape, -1), supported.reshape(shape))

    def along(self, names: Sequence[str], values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The weighted mean of `values` (k1, ..., kd, ...) over all axes but those of `names`."""
        others = tuple(index for index, name in enumerate(self.axes) if name not in names)
        weights = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
        total = weights.sum(others, keepdims=True)
        return (values * weights).sum(others, keepdims=True) / np.where(total > 0, total, 1)

    @cached_property
    def volume(self) -> np.ndarray:
        """The share of the space that each point stands for, (k1, ..., kd)."""
        volume = np.ones(())
        for weights in self.weights.values():
            volume = volume[..., None] * weights
        return volume

    def argmax(self, **fixed: int) -> tuple[int, ...] | None:
        """Indices of the best posterior mean among supported points; `fixed` holds axes at an index. None if none is.
        """
        index = tuple(fixed.get(name, slice(None)) for name in self.axes)
        if not self.supported[index].any():
            return None
        mean = np.where(self.supported[index], self.mean[index], -np.inf)
        found = iter(np.unravel_index(mean.argmax(), mean.shape))
        return tuple(fixed[name] if name in fixed else int(next(found)) for name in self.axes)

    def regions(self) -> int:
        """How many separate regions have a posterior mean within the interval of the best, where no axis is of choices.

        Only regions near trials count, and only such as are at least a hundredth of the space.
        """
        best = self.argmax()
        good = self.supported & (self.mean >= chosen_bounds(self.draws[best])["low"])
        labels, count = label(good, structure=np.ones((3,) * good.ndim))  # diagonal neighbours are one region
        sizes = [self.volume[labels == number].sum() for number in range(1, count + 1)]
        return max(1, sum(size >= 0.01 for size in sizes))

    def point(self, index: tuple[int, ...]) -> dict[str, Any]:
        """The parameters at an index."""
        return {name: axis[place] for (name, axis), place in zip(self.axes.items(), index, strict=True)}


def axes_of(space: dict[str, Dimension], default: dict[str, Any]) -> dict[str, list[Any]]:
    """As many values per parameter as MOST_POINTS allow, evenly spread, with the default among them."""
    counts = {name: len(dimension.values) if dimension.kind == "choice" else MOST_PER_AXIS
              for name, dimension in space.items()}
    while math.prod(counts.values()) > MOST_POINTS:
        ranges = {name: count for name, count in counts.items()
                  if space[name].kind != "choice" and count > FEWEST_PER_AXIS}
        if not ranges:
            break
        counts[max(ranges, key=ranges.__getitem__)] -= 1
    return {name: dimension.axis(counts[name], default.get(name)) for name, dimension in space.items()}


def product(axes: list[list[Any]]) -> list[list[Any]]:
    """Per axis, its value at every point of the grid, in the order of a flattened array."""
    places = np.indices(tuple(map(len, axes))).reshape(len(axes), -1)
    return [[axis[place] for place in row] for axis, row in zip(axes, places, strict=True)]


def bounds(draws: np.ndarray) -> dict[str, Any]:
    """The interval `low` to `high`, at CONFIDENCE, of draws (n, ...) along their first axis."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return {"low": low, "high": high}


def chosen_bounds(draws: np.ndarray, factor: float = CHOSEN) -> dict[str, Any]:
    """As `bounds` of draws (n,), of a point that was chosen as the best of many: wider by a factor."""
    middle = draws.mean()
    return {end: middle + factor * (value - middle) for end, value in bounds(draws).items()}
