"""The real trials that the effect curves and the map show beside the fitted surface."""

import math
from typing import Any

import pandas as pd

from kdstudy.analysis.figures.style import rounded
from kdstudy.analysis.study_files import StudyFiles


def trials_at_budget(study: StudyFiles, found: dict[str, Any]) -> pd.DataFrame:
    """The fitted trials that reached the budget, with their accuracies there in `percent`; the baseline's at alpha = 0.
    """
    arms = [found["arm"], "baseline"] if found["counts"]["baseline"] else [found["arm"]]
    curves = study.curves[(study.curves["epoch"] == found["budget"]) & study.curves["stage"].isin(arms)
                          & (study.curves["decision"] != "failed")]
    wanted = ["stage", "trial", "origin", *study.parameter_names]
    merged = curves[["stage", "trial", "validation_accuracy"]].merge(study.trials[wanted], on=["stage", "trial"])
    if "loss" in found:
        merged = merged[(merged["stage"] != found["arm"]) | (merged["loss"] == found["loss"])].copy()
    merged["percent"] = 100 * merged["validation_accuracy"].astype(float)
    if "alpha" in merged and len(arms) == 2:
        merged.loc[merged["stage"] == "baseline", "alpha"] = 0.0
    return merged.dropna(subset=["percent"])


def reached(found: dict[str, Any]) -> str:
    """Where the surface is read off, in words."""
    return "at the full budget" if found["budget"] == found["epochs"] else f"at epoch {found['budget']}"


def positions(values: Any, dimension: dict[str, Any]) -> list[Any]:
    """The places of values on a parameter's axis."""
    if "choice" in dimension:
        return [dimension["choice"].index(value) for value in values]
    return [rounded(value) for value in values]


def annotation_position(place: float, dimension: dict[str, Any]) -> float:
    """The same place for an annotation: on a log axis, plotly wants its logarithm."""
    return math.log10(place) if "log" in dimension else place
