"""The price of not tuning: what it costs to leave one parameter at its default."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.grid import Grid, bounds

PRICE_DRAWS = 4000  # more than the grid's, for a few points only


def prices(model: BudgetModel, grid: Grid, default: dict[str, Any]) -> pd.DataFrame:
    """What it costs to leave one parameter at its default while the others are tuned, in percentage points.

    Columns parameter, default, price, low, high (at CONFIDENCE). The best points by posterior mean, with and without
    the restriction, are found first; their difference is then drawn, so an interval can reach below 0.
    """
    names = [name for name in grid.axes if default.get(name) in grid.axes[name]
             or (name in default and model.space[name].kind != "choice")]
    best = [refined(model, grid.point(grid.argmax()), ())]
    best += [_best_with_default(model, grid, name, default[name]) for name in names]
    _, draws = model.draws({name: [point[name] for point in best] for name in grid.axes}, count=PRICE_DRAWS)
    rows = [{"parameter": name, "default": default[name], "price": lost.mean(), **bounds(lost)}
            for name, lost in zip(names, draws[0] - draws[1:], strict=True)]
    return pd.DataFrame(rows, columns=["parameter", "default", "price", "low", "high"])


def _best_with_default(model: BudgetModel, grid: Grid, name: str, default: Any) -> dict[str, Any]:
    """The best point with one parameter at its default."""
    unit = model.space[name].unit(grid.axes[name])
    nearest = int(abs(unit - model.space[name].unit([default])).sum(1).argmin())
    return refined(model, grid.point(grid.argmax(**{name: nearest})) | {name: default}, (name,))


def refined(model: BudgetModel, start: dict[str, Any], fixed: tuple[str, ...]) -> dict[str, Any]:
    """The point of the best posterior mean near `start`; choices and the parameters in `fixed` stay as they are."""
    free = [name for name, dimension in model.space.items() if dimension.kind != "choice" and name not in fixed]
    if not free:
        return start

    def point(places: np.ndarray) -> dict[str, Any]:
        return start | {name: model.space[name].at([place])[0] for name, place in zip(free, places, strict=True)}

    def loss(places: np.ndarray) -> float:
        return -float(model.mean({name: [value] for name, value in point(places).items()})[0])

    places = np.array([model.space[name].unit([start[name]])[0, 0] for name in free])
    found = minimize(loss, np.clip(places, 0, 1), method="L-BFGS-B", bounds=[(0, 1)] * len(free),
                     options={"maxiter": 20})
    return point(found.x) if found.fun < loss(places) else start
