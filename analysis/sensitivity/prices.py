"""The price of not tuning: what it costs to leave one parameter at its default."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.grid import CHOSEN_BOTH, Grid, bounds, chosen_bounds

PRICE_DRAWS = 4000  # more than the grid's, for a few points only


def prices(model: BudgetModel, grid: Grid, default: dict[str, Any]) -> pd.DataFrame:
    """What it costs to leave one parameter at its default while the others are tuned, in percentage points.

    Columns parameter, default, price, low, high (at CONFIDENCE), fails: whether training fails at that default, which
    makes the price that of chance. The best points by posterior mean, with and without
    the restriction, are found first; their difference is then drawn, so an interval can reach below 0. The points may
    be wrong, so the interval also holds what the best points of most draws differ by.
    """
    names = [name for name in grid.axes if default.get(name) in grid.axes[name]
             or (name in default and model.space[name].kind != "choice")]
    best = [refined(model, grid.point(grid.argmax()), ())]
    best += [_best_with_default(model, grid, name, default) for name in names]
    _, draws = model.draws({name: [point[name] for point in best] for name in grid.axes}, count=PRICE_DRAWS)
    rows = []
    for name, lost in zip(names, draws[0] - draws[1:], strict=True):
        ends = chosen_bounds(lost, CHOSEN_BOTH)
        missed = bounds(_of_draws(grid, name, _place(model, grid, name, default)))
        rows.append({"parameter": name, "default": default[name], "price": max(lost.mean(), 0.0), "low": ends["low"],
                     "high": max(ends["high"], missed["high"])})
    fails = model.fails({name: [point[name] for point in best[1:]] for name in grid.axes}) if names else []
    return pd.DataFrame(rows, columns=["parameter", "default", "price", "low", "high"]).assign(fails=fails)


def _of_draws(grid: Grid, name: str, place: int) -> np.ndarray:
    """Per draw, the best of all supported points less the best of those with one parameter at an index, (draws,)."""
    axis = list(grid.axes).index(name)
    inside = np.where(grid.supported[..., None], grid.draws, -np.inf)
    held = inside.take(place, axis)
    if not grid.supported.take(place, axis).any():
        held = grid.draws.take(place, axis)
    return np.maximum(inside.reshape(-1, inside.shape[-1]).max(0) - held.reshape(-1, held.shape[-1]).max(0), 0)


def _place(model: BudgetModel, grid: Grid, name: str, default: dict[str, Any]) -> int:
    """The index on a parameter's axis of its default."""
    unit = model.space[name].unit(grid.axes[name])
    return int(abs(unit - model.space[name].unit([default[name]])).sum(1).argmin())


def _best_with_default(model: BudgetModel, grid: Grid, name: str, default: dict[str, Any]) -> dict[str, Any]:
    """The best point with one parameter at its default; where nothing supports any such point, the default point."""
    best = grid.argmax(**{name: _place(model, grid, name, default)})
    if best is None:
        return grid.point(grid.argmax()) | {name: default[name]}
    return refined(model, grid.point(best) | {name: default[name]}, (name,))


def refined(model: BudgetModel, start: dict[str, Any], fixed: tuple[str, ...]) -> dict[str, Any]:
    """The supported point of the best posterior mean near `start`; choices and those in `fixed` stay as they are."""
    free = [name for name, dimension in model.space.items() if dimension.kind != "choice" and name not in fixed]
    if not free:
        return start

    def points(places: np.ndarray) -> dict[str, list[Any]]:
        """Of places (m, free)."""
        return {name: [value] * len(places) for name, value in start.items()} | {
            name: model.space[name].at(column) for name, column in zip(free, places.T, strict=True)}

    def loss(places: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean and its gradient by differences, of one call."""
        steps = np.where(places > 0.5, -1e-5, 1e-5)
        found = -model.mean(points(np.vstack([places, places + np.diag(steps)])))
        return float(found[0]), (found[1:] - found[0]) / steps

    places = np.clip([model.space[name].unit([start[name]])[0, 0] for name in free], 0, 1)
    found = minimize(loss, places, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * len(free), options={"maxiter": 15})
    better = points(found.x[None])
    if found.fun < loss(places)[0] and model.supports(better)[0]:
        return {name: values[0] for name, values in better.items()}
    return start
