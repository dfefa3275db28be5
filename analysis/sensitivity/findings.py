"""All that the sensitivity analysis finds about a study, as data. This becomes sensitivity.json."""

from typing import Any

import numpy as np
import pandas as pd

from kdstudy.analysis.sensitivity import teachers
from kdstudy.analysis.sensitivity.budget_model import DRAWS, BudgetModel
from kdstudy.analysis.sensitivity.effects import NEAR_BEST, best_map, curves, main_effects
from kdstudy.analysis.sensitivity.grid import Grid, chosen_bounds, product
from kdstudy.analysis.sensitivity.latest import LATEST
from kdstudy.analysis.sensitivity.losses import compared, leading_loss, surfaces
from kdstudy.analysis.sensitivity.prices import prices
from kdstudy.analysis.sensitivity.reports import diverged
from kdstudy.analysis.sensitivity.space import default_of_loss, default_point, space_of
from kdstudy.analysis.study_files import StudyFiles


def analyse(study: StudyFiles) -> dict[str, Any]:
    """The content of sensitivity.json, of the distillation, or of the baseline before the former has begun.

    Always: arm, and searched (the range of each parameter). Where losses were searched, losses: see `losses.compared`;
    and where these have unlike parameters, loss: the leading one, whose trials alone all else is about. Where teachers
    were searched, teachers: see `teachers.compared`. Then either
    missing, a sentence that says why there is no more, or

    budget, epochs: the epoch at which all is read off, and the full budget.
    counts: trials, reports, full (trials at the budget), protected and baseline among these, failed (other than by
        diverging), unlearned (trials at chance or diverged, which are not part of the surface).
    coverage: how many trials lie inside the interval that the others predict for them, and of how many.
    prices: in percentage points. effects, effects_near: shares of the variance, 0 to 1. near_share: the share of the
        space, 0 to 1, that lies near the best.
    curves, map, best: accuracies in percent, with map_of, the two parameters of the map (None with one parameter).
        Where no trial is near, numbers are None; best is the best of where trials are. winner: what the surface says of
        the arm's winner, once there is one. supported_share: the share of the space, 0 to 1, that is near trials,
        failing regions left out.
        regions: how many separate regions are about as good as the best.

    low and high always are the ends of a 90 % interval. Numbers have five significant digits.
    """
    arm = "distill" if (study.trials["stage"] == "distill").any() else "baseline"
    models = surfaces(study, arm)
    loss = None if None in models else leading_loss(study)
    model, space = models[loss], space_of(study, arm, loss)
    facts: dict[str, Any] = {"arm": arm, "searched": {
        name: {dimension.kind: list(dimension.values)} for name, dimension in space.items()}}
    if arm == "distill" and (rows := compared(study, models)):
        facts |= _plain({"losses": rows} | ({"loss": loss} if loss else {}))
    if arm == "distill" and study.teacher_choice:
        facts |= _plain({"teachers": teachers.compared(study, model)})
    if isinstance(model, str):
        return facts | {"missing": model}
    default = default_point(study) if loss is None else default_of_loss(study, space)
    left_out = model.leave_trial_out()
    return _plain(facts | {
        "budget": model.budget, "epochs": study.description.get("epochs") or model.budget,
        "counts": _counts(study, model, arm, loss),
        "coverage": {"inside": int(left_out["inside"].sum()), "trials": len(left_out)},
        **said_of_surface(model, default), "winner": _predicted(model, study.choice(arm)),
    })


def said_of_surface(model: BudgetModel, default: dict[str, Any]) -> dict[str, Any]:
    """What a fitted surface says by itself: prices to regions of `analyse`."""
    return LATEST.of(("said", model.made_of, repr(default)), lambda: _read_off(model, default))


def _read_off(model: BudgetModel, default: dict[str, Any]) -> dict[str, Any]:
    grid = Grid.of(model, default)
    best, pair = grid.argmax(), _map_pair(list(grid.axes))
    return {
        "prices": _records(prices(model, grid, default)),
        "effects": _records(main_effects(grid)), "effects_near": _records(main_effects(grid, near=NEAR_BEST)),
        "near_share": float(grid.volume[grid.mean >= grid.mean[grid.argmax()] - NEAR_BEST].sum()),
        "curves": _records(curves(grid)), "map": _records(best_map(grid, *pair)) if pair else None,
        "map_of": pair,
        "best": {"parameters": grid.point(best), "accuracy": grid.mean[best], **chosen_bounds(grid.draws[best])},
        "supported_share": _supported_share(model, grid),
        "regions": 1 if any(one.kind == "choice" for one in model.space.values()) else grid.regions(),
    }


def _supported_share(model: BudgetModel, grid: Grid) -> float:
    """The share, 0 to 1, that is near trials, of the part of the space where training does not fail."""
    fails = model.fails(dict(zip(grid.axes, product(list(grid.axes.values())), strict=True))).reshape(grid.mean.shape)
    learns = float(grid.volume[~fails].sum())
    return float(grid.volume[grid.supported & ~fails].sum()) / learns if learns else 0.0


def _predicted(model: BudgetModel, choice: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the surface says of a winner, of its done-mark; None where that lacks a searched parameter."""
    parameters = (choice or {}).get("parameters", {})
    if not set(model.space) <= set(parameters):
        return None
    point = {name: parameters[name] for name in model.space}
    mean, draws = model.draws({name: [value] for name, value in point.items()}, count=4 * DRAWS)
    return {"parameters": point, "accuracy": mean[0], **chosen_bounds(draws[0])}


def _map_pair(names: list[str]) -> list[str] | None:
    """The parameters of the map: temperature and alpha where both are searched, else the first two."""
    wanted = [name for name in ("temperature", "alpha") if name in names]
    return wanted if len(wanted) == 2 else names[:2] if len(names) > 1 else None


def _counts(study: StudyFiles, model: BudgetModel, arm: str, loss: str | None) -> dict[str, int]:
    """trials, reports: those that the process uses. full: trials at the budget; of these, protected: the search's own
    protected ones, baseline: the baseline's at alpha = 0. failed: trials that failed without diverging.
    unlearned: see `failures`. loss: that of the arm's trials, where only these are counted.
    """
    trials = study.trials[study.trials["stage"].isin(model.rows["arm"].unique())]
    if loss is not None:
        trials = trials[(trials["stage"] != arm) | (trials["loss"] == loss)]
    failed = trials[trials["ended"] == "failed"]
    full = model.rows[model.rows["epoch"] == model.budget]
    own = full["arm"] == arm
    return {"trials": model.rows["trial"].nunique(), "reports": len(model.rows), "full": len(full),
            "protected": int(full.loc[own, "protected"].astype(bool).sum()),
            "baseline": int((~own).sum()), "failed": int((~diverged(failed)).sum()),
            "unlearned": 0 if model.failures is None else len(model.failures.failed)}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _plain(value: Any) -> Any:
    """Python's own numbers, of five significant digits, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.5g}") if isinstance(value, float) else value
