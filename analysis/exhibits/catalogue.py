"""The list of the report's figures: each has one entry, and its name never changes.

The same name stands for the figure in `report.figures`, for its file with --images, and for its section on the page
(#s-NAME).
"""

from collections.abc import Callable
from functools import partial

from kdstudy.analysis.exhibits import (
    audit,
    controls,
    deployment,
    effects,
    gain,
    losses,
    predictions,
    searches,
    teacher_choice,
    teachers,
)
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.study_analysis import StudyAnalysis

# In the order of the page. Each function is called with the name and the analysis.
EXHIBITS: dict[str, Callable[[str, StudyAnalysis], Exhibit]] = {
    "gain": gain.gain,
    "teachers": teachers.teachers,
    "controls": controls.controls,
    "audit": audit.audit,
    "price": effects.price,
    "effect-curves": effects.effect_curves,
    "map": effects.best_map,
    "effects": effects.effects,
    "losses": losses.losses,
    "which-teacher": teacher_choice.which_teacher,
    "rungs": searches.rungs,
    "curves-distill": partial(searches.learning_curves, stage="distill", nav="Learning curves"),
    "curves-baseline": partial(searches.learning_curves, stage="baseline"),
    "parallel": searches.parallel,
    "history": searches.history,
    "slices": searches.slices,
    "teacher": searches.teacher,
    "classes": predictions.classes,
    "agreement": predictions.agreement,
    "calibration": predictions.calibration,
    "deployment": deployment.deployment,
    "budget": searches.budget,
}


def exhibit(name: str, analysis: StudyAnalysis) -> Exhibit:
    """The figure of that name, with its words; only what it needs is computed. Raises ValueError for another name."""
    if name not in EXHIBITS:
        raise ValueError(f"there is no figure {name!r}; the figures are {', '.join(EXHIBITS)}")
    return EXHIBITS[name](name, analysis)


def exhibits(analysis: StudyAnalysis) -> list[Exhibit]:
    """All figures of a study in the order of the page, those that cannot be drawn yet among them.

    Left out are those about what it does not ask, such as the losses where it searches none."""
    return [found for name in EXHIBITS if (found := exhibit(name, analysis)).applies]
