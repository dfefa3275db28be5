"""A study's reports to a fitted Gaussian process."""

from kdstudy.analysis.sensitivity.budget_model import BudgetModel
from kdstudy.analysis.sensitivity.reports import FEWEST_FULL, read_off_epoch, reports_of, with_baseline
from kdstudy.analysis.sensitivity.space import space_of
from kdstudy.analysis.study_files import ARMS, StudyFiles

USUAL_IMAGES = 1000  # assumed validation images where the study does not say


def model_of(study: StudyFiles, arm: str = "distill") -> BudgetModel | str:
    """The process of a search, for `distill` with the baseline as alpha = 0; or a sentence that says why there is none.
    """
    space = space_of(study, arm)
    reports = reports_of(study, arm, space)
    if reports.empty:
        return f"No {ARMS[arm]} trial has reported yet."
    if not space:
        return f"The {ARMS[arm]} searched no parameter, so there is nothing to tell apart."
    if arm == "distill":
        reports = with_baseline(reports, reports_of(study, "baseline", space), space)
    budget = read_off_epoch(reports, arm, study.description.get("epochs") or reports["epoch"].max())
    if budget is None:
        few = reports.loc[reports["arm"] == arm, "trial"].nunique()
        return (f"Only {few} {ARMS[arm]} {'trial has' if few == 1 else 'trials have'} reported; at least "
                f"{FEWEST_FULL} that came equally far are needed to tell parameters apart.")
    model = BudgetModel(reports, space, budget, study.description.get("data", {}).get("validation") or USUAL_IMAGES)
    if model.is_constant:
        return f"All trials have the same accuracy at epoch {budget}: there is nothing for parameters to explain."
    return model


def full_budget_model(study: StudyFiles, arm: str) -> BudgetModel | None:
    """The process of a search; None where it cannot be read off at the full budget."""
    model = model_of(study, arm)
    full = study.description.get("epochs")
    return model if isinstance(model, BudgetModel) and model.budget == (full or model.budget) else None
