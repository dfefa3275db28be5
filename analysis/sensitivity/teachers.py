"""The teachers that a search chose from, side by side, and whether it shows that one teaches better than another."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.grid import CHOSEN_BOTH, Grid, bounds, chosen_bounds
from kdstudy.analysis.sensitivity.losses import seen_of
from kdstudy.analysis.sensitivity.prices import PRICE_DRAWS, refined
from kdstudy.analysis.sensitivity.space import default_of_loss
from kdstudy.analysis.study_files import StudyFiles

TEACHER = "teacher"


def compared(study: StudyFiles, model: BudgetModel | str) -> list[dict[str, Any]]:
    """A row per teacher that the distillation chose from, in the order of the study file; none where it searched none.

    teacher, its name; model, parameters (the number of its weights, None where it is a file of logits) and own, its
    accuracy on the validation images, in percent, all None until it is trained; trials, full: how many trials it has,
    and how many of these ran all epochs; best_seen: the best of those, in percent. Then either missing, why the surface
    says nothing of it, or best: the point where the surface is best with this teacher, as `best` of
    `findings.analyse`, and behind: by how many points it is then worse than the best of the leading teacher, with low
    and high; None for that one itself.

    model: the surface, or why there is none. With all other parameters tuned for each teacher.
    """
    rows = [_facts(study, name) for name in study.teacher_choice]
    if isinstance(model, str) or TEACHER not in model.space:
        why = model if isinstance(model, str) else "all trials of the leading loss have the same teacher."
        return [row | {"missing": why} for row in rows]
    grid = Grid.of(model, default_of_loss(study, model.space))
    found = {name: index for place, name in enumerate(grid.axes[TEACHER])
             if (index := grid.argmax(**{TEACHER: place})) is not None}
    behind = _behind(model, grid, found)
    return [row | (_said(grid, found[name], behind[name]) if (name := row[TEACHER]) in found else
                   {"missing": "no trial with this teacher is near enough to its best point."}) for row in rows]


def _facts(study: StudyFiles, name: str) -> dict[str, Any]:
    trials, done = study.trials[study.trials["stage"] == "distill"], study.teacher_done(name)
    own = None if done is None else 100 * done["best_validation"]
    return {TEACHER: name, "model": done and done["model"], "parameters": done and done["model_parameters"], "own": own,
            **seen_of(trials[trials[TEACHER] == name] if TEACHER in trials else trials[:0])}


def _said(grid: Grid, index: tuple[int, ...], behind: dict[str, float] | None) -> dict[str, Any]:
    point = {name: value for name, value in grid.point(index).items() if name != TEACHER}
    best = {"parameters": point, "accuracy": grid.mean[index], **chosen_bounds(grid.draws[index])}
    return {"best": best, "behind": behind}


def _behind(model: BudgetModel, grid: Grid, found: dict[str, tuple[int, ...]]) -> dict[str, dict[str, float] | None]:
    """By how much each teacher is behind the leading one, see `compared`. found: the best place of each on the grid.

    As for the price of a default: the best points by posterior mean are found first and their difference is then drawn;
    the points may be wrong, so the interval also holds what the best points of most draws differ by.
    """
    points = {name: refined(model, grid.point(index), (TEACHER,)) for name, index in found.items()}
    mean, draws = model.draws({axis: [point[axis] for point in points.values()] for axis in grid.axes},
                              count=PRICE_DRAWS)
    lead = int(mean.argmax())
    best = {name: _best_of_draws(grid, name) for name in found}
    leading, behind = list(found)[lead], {}
    for place, name in enumerate(found):
        ends = chosen_bounds(draws[lead] - draws[place], CHOSEN_BOTH)
        others = bounds(best[leading] - best[name])
        behind[name] = None if place == lead else {
            "points": mean[lead] - mean[place], "low": min(ends["low"], others["low"]),
            "high": max(ends["high"], others["high"])}
    return behind


def _best_of_draws(grid: Grid, name: str) -> np.ndarray:
    """Per draw, the best among the supported points of a teacher, (draws,)."""
    axis, place = list(grid.axes).index(TEACHER), grid.axes[TEACHER].index(name)
    inside = np.where(grid.supported[..., None], grid.draws, -np.inf).take(place, axis)
    return inside.reshape(-1, inside.shape[-1]).max(0)
