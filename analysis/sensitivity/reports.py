"""The reports of a search's trials, as the Gaussian process needs them."""

import math

import pandas as pd

from kdstudy.analysis.sensitivity.space import Dimension, trials_of_loss
from kdstudy.analysis.study_files import StudyFiles

DIVERGED = r"\w+ is (?:nan|-?inf) at epoch "  # how a record says so
# Irrational steps that spread points evenly over ranges, each in another way; the first is the golden ratio.
STEPS = tuple((math.sqrt(number) - 1) / 2 for number in (5, 2, 3, 7, 11, 13, 17, 19))
FEWEST_FULL = 4  # trials at the budget; with fewer, parameters cannot be told apart


def reports_of(study: StudyFiles, arm: str, space: dict[str, Dimension], loss: str | None = None) -> pd.DataFrame:
    """A row per report of an arm's search: trial, epoch, accuracy (a share), protected, diverged, arm, parameters.

    loss: only of trials with this one. Diverged trials are marked; one that diverged before its first report has a row
    at epoch 0, without accuracy.
    """
    curves = study.curves[(study.curves["stage"] == arm) & study.curves["validation_accuracy"].notna()
                          & (study.curves["decision"] != "failed")]
    trials = study.trials[study.trials["stage"] == arm] if loss is None else trials_of_loss(study, loss)
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

    Only the distillation's where alpha has no linear range. The loss and its parameters have no effect at alpha = 0;
    the baseline's trials are spread over their ranges, so that the process learns that.
    """
    alpha = space.get("alpha")
    if alpha is None or alpha.kind != "linear" or baseline.empty:
        return distill
    added = baseline.assign(alpha=0.0, trial=baseline["trial"] + 1 + distill["trial"].max())
    without = [name for name in space if name not in added or added[name].isna().all()]
    for name, step in zip(sorted(without, key=lambda name: name != "temperature"), STEPS, strict=False):
        places = {trial: (index + 1) * step % 1 for index, trial in enumerate(sorted(added["trial"].unique()))}
        added[name] = space[name].at(added["trial"].map(places).to_numpy())
    return pd.concat([distill, added], ignore_index=True)


def read_off_epoch(reports: pd.DataFrame, arm: str, budget: int) -> int | None:
    """The latest epoch, up to the full budget, that at least FEWEST_FULL of an arm's trials have reached; None if none.

    Accuracies beyond that epoch are never extrapolated.
    """
    trials = reports[(reports["arm"] == arm) & (reports["epoch"] <= budget)].groupby("epoch")["trial"].nunique()
    enough = trials.index[trials >= FEWEST_FULL]
    return int(enough.max()) if len(enough) else None
