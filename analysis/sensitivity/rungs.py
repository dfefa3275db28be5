"""Whether early epochs predict the end: rank correlations between the rungs of early stopping."""

from typing import Any

import numpy as np
import pandas as pd

from kdstudy.analysis.sensitivity.reports import FEWEST_FULL, reports_of
from kdstudy.analysis.study_files import SEARCH_STAGES, StudyFiles

PREDICTIVE_RANKS = 0.5  # a rung whose rank correlation with the end is smaller does not predict it
COLUMNS = ["arm", "rung", "later", "trials", "protected", "correlation"]


def rung_correlations(study: StudyFiles) -> pd.DataFrame:
    """How well the ranking at a rung agrees with a later one: a row per arm, rung (epoch) and later rung or last epoch.

    correlation is Spearman's, over the protected trials, which no rung selects. Where a search has fewer than
    FEWEST_FULL of them (`protected` False), it is over all trials that reached the later epoch: a selection, which
    pulls it towards 0.
    """
    rows = []
    epochs = [*study.description.get("rungs", []), study.description.get("epochs")]
    for arm in SEARCH_STAGES:
        reports = reports_of(study, arm, {}).pivot(index="trial", columns="epoch", values="accuracy")
        trials = study.trials[study.trials["stage"] == arm].set_index("trial")
        protected = reports.index.isin(trials.index[trials["protected"].astype(bool)])
        for index, rung in enumerate(epochs[:-1]):
            for later in epochs[index + 1:]:
                rows += _rank_correlation(arm, reports, protected, rung, later)
    return pd.DataFrame(rows, columns=COLUMNS)


def _rank_correlation(arm: str, reports: pd.DataFrame, protected: np.ndarray, rung: int,
                      later: int) -> list[dict[str, Any]]:
    if rung not in reports or later not in reports:
        return []
    both = reports[[rung, later]].notna().all(axis=1)
    chosen = both & protected if (both & protected).sum() >= FEWEST_FULL else both
    ranks = reports.loc[chosen, [rung, later]].rank()
    if len(ranks) < FEWEST_FULL or (ranks.std() == 0).any():
        return []
    return [{"arm": arm, "rung": int(rung), "later": int(later), "trials": len(ranks),
             "protected": bool(protected[chosen.to_numpy()].all()),
             "correlation": float(ranks.corr().iloc[0, 1])}]
