"""What a finished search hands on: its best full-budget trials, and the best values of what both arms search."""

from typing import Any

import numpy as np
from scipy.special import logit

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.fit import full_budget_model
from kdstudy.analysis.sensitivity.grid import axes_of, product
from kdstudy.analysis.sensitivity.prices import refined
from kdstudy.analysis.sensitivity.space import default_point, unlike_losses
from kdstudy.analysis.study_files import StudyFiles


def choices(study: StudyFiles, arm: str) -> tuple[list[int], dict[str, Any] | None]:
    """An arm's full-budget trials ranked and, for `distill`, the best values of what both arms search.

    The ranking holds trial numbers, the best first by posterior mean, which is what fresh seeds would give; by their
    own accuracies where too few trials reached the full budget. Ties: validation loss, then number. The values are the
    best by posterior mean with the loss, its parameters and alpha at their defaults; None where too few trials reached
    the full budget. Losses with unlike parameters have a surface each; trials of one that has too few for a surface are
    ranked by their own accuracies, with all their luck.
    """
    losses = unlike_losses(study) if arm == "distill" else ()
    models = {loss: full_budget_model(study, arm, loss) for loss in losses or (None,)}
    own = default_point(study).get("loss") if losses else None
    return _ranked(study, arm, models), _best_shared(study, models.get(own)) if arm == "distill" else None


def _ranked(study: StudyFiles, arm: str, models: dict[str | None, BudgetModel | None]) -> list[int]:
    """models: by loss, or one for all trials, None."""
    ended = study.trials[(study.trials["stage"] == arm) & (study.trials["ended"] == "complete")]
    last = study.curves[study.curves["stage"] == arm].drop_duplicates("trial", keep="last").set_index("trial")
    shares = ended["last_validation_accuracy"].astype(float).clip(1e-6, 1 - 1e-6)
    ended = ended.assign(validation_loss=ended["trial"].map(last["validation_loss"]), value=logit(shares))
    for loss, model in models.items():
        mine = ended.index if loss is None else ended.index[ended["loss"] == loss]
        if model is not None and len(mine):
            points = {name: ended.loc[mine, name].tolist() for name in model.space}
            ended.loc[mine, "value"] = model.mean(points).round(9)
    ranked = ended.sort_values(["value", "validation_loss", "trial"], ascending=[False, True, True])
    return ranked["trial"].astype(int).tolist()


def _best_shared(study: StudyFiles, model: BudgetModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    default = default_point(study)
    fixed = tuple(name for name in model.space if name in study.of_distillation)
    axes = axes_of(model.space, default) | {name: [default[name]] for name in fixed}
    values = dict(zip(axes, product(list(axes.values())), strict=True))
    mean, _, supported = model.read_off(values, count=0)
    best = int(np.where(supported, mean, -np.inf).argmax())
    found = refined(model, {name: column[best] for name, column in values.items()}, fixed)
    return {name: value for name, value in found.items() if name not in fixed}
