"""The reports of a search's trials, as the Gaussian process needs them."""

import math

import pandas as pd

from kdstudy.analysis.sensitivity.space import Dimension
from kdstudy.analysis.study_files import StudyFiles

DIVERGED = r"\w+ is (?:nan|-?inf) at epoch "  # how a record says so
FEWEST_FULL = 4  # trials at the budget; with fewer, parameters cannot be told apart


def reports_of(study: StudyFiles, arm: str, space: dict[str, Dimension]) -> pd.DataFrame:
    """A row per report of an arm's search: trial, epoch, accuracy (a share), protected, diverged, arm, parameters.

    Diverged trials are marked; one that diverged before its first report has a row at epoch 0, without accuracy.
    """
    curves = study.curves[(study.curves["stage"] == arm) & study.curves["validation_accuracy"].notna()
                          & (study.curves["decision"] != "failed")]
    trials = study.trials[study.trials["stage"] == arm]
    known = [name for name in space if name in trials.columns]
    described = trials[["trial", "protected", *known]].assign(diverged=diverged(trials))
    merged = curves[["trial", "epoch", "validation_accuracy"]].merge(described, on="trial")
    merged = merged.rename(columns={"validation_accuracy": "accuracy"})
    silent = described[described["diverged"] & ~described["trial"].isin(merged["trial"])].assign(epoch=0)
    merged = pd.concat([merged, silent], ignore_index=True) if len(silent) else merged
    return merged.assign(arm=arm).drop_duplicates(["trial", "epoch"], keep="last")


def diverged(trials: pd.DataFrame) -> pd.Series:
    """Which trials (rows of `StudyFiles.trials`) ended because a loss or an accuracy was no number any more."""
    return (trials["ended"] == "failed") & trials["reason"].astype(str).str.match(DIVERGED)


def with_baseline(distill: pd.DataFrame, baseline: pd.DataFrame, space: dict[str, Dimension]) -> pd.DataFrame:
    """The reports of both arms, the baseline's at alpha = 0: there distillation is the baseline.

    Only the distillation's where alpha has no linear range. The temperature has no effect at alpha = 0; the baseline's
    trials are spread over its range, so that the process learns that.
    """
    alpha = space.get("alpha")
    if alpha is None or alpha.kind != "linear" or baseline.empty:
        return distill
    added = baseline.assign(alpha=0.0, trial=baseline["trial"] + 1 + distill["trial"].max())
    if "temperature" in space:
        golden = (math.sqrt(5) - 1) / 2
        places = {trial: (index + 1) * golden % 1 for index, trial in enumerate(sorted(added["trial"].unique()))}
        added["temperature"] = space["temperature"].at(added["trial"].map(places).to_numpy())
    return pd.concat([distill, added], ignore_index=True)


def read_off_epoch(reports: pd.DataFrame, arm: str, budget: int) -> int | None:
    """The latest epoch, up to the full budget, that at least FEWEST_FULL of an arm's trials have reached; None if none.

    Accuracies beyond that epoch are never extrapolated.
    """
    trials = reports[(reports["arm"] == arm) & (reports["epoch"] <= budget)].groupby("epoch")["trial"].nunique()
    enough = trials.index[trials >= FEWEST_FULL]
    return int(enough.max()) if len(enough) else None
