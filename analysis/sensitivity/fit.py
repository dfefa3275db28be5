"""A study's reports to a fitted Gaussian process."""

import numpy as np
import pandas as pd

from kdstudy.analysis.number_text import counted
from kdstudy.analysis.sensitivity.budget_model import BudgetModel, places_of
from kdstudy.analysis.sensitivity.failures import Failures, failed_trials
from kdstudy.analysis.sensitivity.reports import FEWEST_FULL, read_off_epoch, reports_of, with_baseline
from kdstudy.analysis.sensitivity.space import Dimension, space_of
from kdstudy.analysis.study_files import ARMS, StudyFiles

LOWEST = 0.01  # the accuracy that a diverged trial counts with where chance is not known
USUAL_IMAGES = 1000  # assumed validation images where the study does not say


def model_of(study: StudyFiles, arm: str = "distill", loss: str | None = None) -> BudgetModel | str:
    """The process of a search, for `distill` with the baseline as alpha = 0; or a sentence that says why there is none.

    loss: that of the trials with this one alone, over the parameters that it has.
    """
    space, with_loss = space_of(study, arm, loss), "" if loss is None else f" with the loss {loss}"
    reports = reports_of(study, arm, space, loss)
    if reports.empty:
        return f"No {ARMS[arm]} trial{with_loss} has reported yet."
    if not space:
        return f"The {ARMS[arm]}{with_loss} searched no parameter, so there is nothing to tell apart."
    if arm == "distill":
        reports = with_baseline(reports, reports_of(study, "baseline", space), space)
    images = (study.description.get("data") or {}).get("validation") or USUAL_IMAGES
    reports, failures = without_failures(reports, space, images, study.chance)
    budget = read_off_epoch(reports, arm, study.description.get("epochs") or reports["epoch"].max())
    if budget is None:
        few = reports.loc[reports["arm"] == arm, "trial"].nunique()
        if failures is not None:
            left = (f"{f'only {few}' if few else 'no'} {ARMS[arm]} "
                    f"{f'trials{with_loss} have' if few > 1 else f'trial{with_loss} has'}")
            return (f"{counted(len(failures.failed), 'trial')} failed to learn, and {left} learned; at least "
                    f"{FEWEST_FULL} that came equally far are needed to tell parameters apart.")
        have = f"trial{with_loss} has" if few == 1 else f"trials{with_loss} have"
        return (f"Only {few} {ARMS[arm]} {have} reported; at least "
                f"{FEWEST_FULL} that came equally far are needed to tell parameters apart.")
    model = BudgetModel(reports, space, budget, images, failures)
    if model.is_constant:
        return (f"All trials{with_loss} have the same accuracy at epoch {budget}: there is nothing for parameters to "
                "explain.")
    return model


def without_failures(reports: pd.DataFrame, space: dict[str, Dimension], images: int,
                     chance: float | None) -> tuple[pd.DataFrame, Failures | None]:
    """The reports of the trials that learned, and the failures, None where there are none.

    chance: the accuracy of guessing, 0 to 1; None where it is not known, and then only diverged trials have failed.
    """
    numbers = failed_trials(reports, images, chance)
    trials = reports.drop_duplicates("trial")
    down = trials["trial"].isin(numbers)
    if not down.any():
        return reports, None
    learned, failed = (places_of(space, rows) if len(rows) else np.empty((0, 0))
                       for rows in (trials[~down], trials[down]))
    return reports[~reports["trial"].isin(numbers)], Failures(learned, failed, chance or LOWEST)


def full_budget_model(study: StudyFiles, arm: str, loss: str | None = None) -> BudgetModel | None:
    """The process of a search, or of its trials with a loss; None where it cannot be read off at the full budget."""
    model = model_of(study, arm, loss)
    full = study.description.get("epochs")
    return model if isinstance(model, BudgetModel) and model.budget == (full or model.budget) else None
