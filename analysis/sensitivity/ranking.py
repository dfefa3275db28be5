"""What a finished search hands on: its best full-budget trials, and the best values of what both arms search."""

from typing import Any

import numpy as np

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.fit import full_budget_model
from kdstudy.analysis.sensitivity.grid import axes_of, product
from kdstudy.analysis.sensitivity.prices import refined
from kdstudy.analysis.sensitivity.space import default_point
from kdstudy.analysis.study_files import StudyFiles


def choices(study: StudyFiles, arm: str) -> tuple[list[int], dict[str, Any] | None]:
    """An arm's full-budget trials ranked and, for `distill`, the best values of what both arms search.

    The ranking holds trial numbers, the best first by posterior mean, which is what fresh seeds would give; by their
    own accuracies where too few trials reached the full budget. Ties: validation loss, then number. The values are the
    best by posterior mean with temperature and alpha at their defaults; None where too few trials reached the full
    budget.
    """
    model = full_budget_model(study, arm)
    return _ranked(study, arm, model), _best_shared(study, model) if arm == "distill" else None


def _ranked(study: StudyFiles, arm: str, model: BudgetModel | None) -> list[int]:
    ended = study.trials[(study.trials["stage"] == arm) & (study.trials["ended"] == "complete")]
    last = study.curves[study.curves["stage"] == arm].drop_duplicates("trial", keep="last").set_index("trial")
    ended = ended.assign(loss=ended["trial"].map(last["validation_loss"]),
                         value=ended["last_validation_accuracy"].astype(float))
    if model is not None:
        ended["value"] = model.mean({name: ended[name].tolist() for name in model.space}).round(9)
    return ended.sort_values(["value", "loss", "trial"], ascending=[False, True, True])["trial"].astype(int).tolist()


def _best_shared(study: StudyFiles, model: BudgetModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    default = default_point(study)
    fixed = tuple(name for name in ("temperature", "alpha") if name in model.space)
    axes = axes_of(model.space, default) | {name: [default[name]] for name in fixed}
    values = dict(zip(axes, product(list(axes.values())), strict=True))
    mean, _, supported = model.read_off(values, count=0)
    best = int(np.where(supported, mean, -np.inf).argmax())
    found = refined(model, {name: column[best] for name, column in values.items()}, fixed)
    return {name: value for name, value in found.items() if name not in fixed}
