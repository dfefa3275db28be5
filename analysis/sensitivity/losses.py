"""The losses that a search chose from, side by side, and the surface of each where they have unlike parameters."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.fit import model_of
from kdstudy.analysis.sensitivity.grid import Grid, chosen_bounds
from kdstudy.analysis.sensitivity.space import default_of_loss, losses_of, trials_of_loss, unlike_losses
from kdstudy.analysis.study_files import StudyFiles


def surfaces(study: StudyFiles, arm: str) -> dict[str | None, BudgetModel | str]:
    """The surface of each loss, or why it has none, where losses have unlike parameters; else {None: that of all}."""
    unlike = unlike_losses(study) if arm == "distill" else ()
    return {loss: model_of(study, arm, loss) for loss in unlike or (None,)}


def leading_loss(study: StudyFiles) -> str:
    """The loss of the distillation's winner; before there is one, that of the best trial at the full budget so far."""
    chosen = (study.choice("distill") or {}).get("parameters", {}).get("loss")
    if chosen in losses_of(study):
        return chosen
    trials = study.trials[(study.trials["stage"] == "distill") & study.trials["loss"].notna()]
    ended = trials[trials["ended"] == "complete"]
    best = ended.sort_values("last_validation_accuracy", ascending=False, kind="stable")
    return (best if len(best) else trials).iloc[0]["loss"]


def compared(study: StudyFiles, models: dict[str | None, BudgetModel | str]) -> list[dict[str, Any]]:
    """A row per loss that the distillation chose from, in the order of the study file; none where it searched no loss.

    loss; trials, full: how many it has, and how many of these ran all epochs. best_seen: the best of those, in percent.
    Then either missing, why there is no surface, or best: the point where its surface is best, as `best` of
    `findings.analyse`. models: as `surfaces` returns them.
    """
    rows = []
    for loss in losses_of(study):
        row = {"loss": loss, **seen_of(trials_of_loss(study, loss))}
        model = models[loss] if loss in models else models[None]
        best = None if isinstance(model, str) else _best(study, model, loss)
        missing = model if isinstance(model, str) else "no trial with this loss is near enough to its best point."
        rows.append(row | ({"best": best} if best else {"missing": missing}))
    return rows


def seen_of(trials: pd.DataFrame) -> dict[str, Any]:
    """trials, full and best_seen of some trials, see `compared`."""
    ended = trials[trials["ended"] == "complete"]
    seen = ended["last_validation_accuracy"].dropna().astype(float)
    return {"trials": len(trials), "full": len(ended), "best_seen": 100 * seen.max() if len(seen) else None}


def _best(study: StudyFiles, model: BudgetModel, loss: str) -> dict[str, Any] | None:
    """The best point of a surface, with a loss where the surface is that of all."""
    grid = Grid.of(model, default_of_loss(study, model.space))
    fixed = {"loss": grid.axes["loss"].index(loss)} if "loss" in grid.axes else {}
    index = grid.argmax(**fixed)
    if index is None:
        return None
    point = {name: value for name, value in grid.point(index).items() if name != "loss"}
    return {"parameters": point, "accuracy": grid.mean[index], **chosen_bounds(grid.draws[index])}
