"""What else is known about the gain: is it the teacher's or the learning rate's, the winner's luck, how many seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdstudy.analysis.results import FINALIST_STAGES, SEARCH_OF, StudyFiles
from kdstudy.analysis.significance import (
    Interval,
    crossed_interval,
    mcnemar,
    paired_t_interval,
    seeds_needed,
    smallest_gain,
)

ONLY = "only "  # how the configuration begins that leaves temperature and alpha at their defaults
GAINS_IN_QUESTION = (0.5, 1.0, 2.0, 5.0)  # points


def points(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "p": interval.p}


def gain(right: np.ndarray, baseline: np.ndarray) -> dict[str, Any] | None:
    """The gain of `right` over `baseline`, (seeds, N) bool each, in points; none at all where one seed allows no
    interval."""
    differences = 100 * (right.astype(float) - baseline.astype(float))
    seeds, images = differences.shape
    if seeds < 2:
        return None
    return {**points(crossed_interval(differences)), "seeds": seeds, "images": images,
            "seeds_only": points(paired_t_interval(differences.mean(1)))}


def evidence(study: StudyFiles) -> dict[str, Any] | None:
    """Beside the gain, in percent and points; None while the study is not confirmed. A part is None where it cannot
    be known.

    default: the gain at the default point, over the baseline at the default point. only: the configuration that tunes
    only what both arms share, its gain over the tuned baseline, and what tuning temperature and alpha adds to it.
    selected: per arm, the validation accuracy that won the search, out of how many trials, and the mean of the
    retrained runs. exported: exact McNemar of the exported student against the tuned baseline of the same seed. seeds:
    what this many seeds would find, and how many a given gain needs.
    """
    if study.confirmation is None:
        return None
    confirmed = study.confirmed
    distilled, baseline = confirmed["distilled", "tuned"], confirmed["baseline", "tuned"]
    several = len(baseline) > 1
    return {
        "default": gain(confirmed["distilled", "default"], confirmed["baseline", "default"]),
        "only": _only(study) if several else None,
        "selected": {arm: _selected(study, arm) for arm in SEARCH_OF},
        "exported": _exported(distilled[0], baseline[0]),
        "seeds": _seeds(100 * (distilled.astype(float) - baseline.astype(float))) if several else None,
    }


def _only(study: StudyFiles) -> dict[str, Any] | None:
    row = next((row for row in study.confirmation["rows"] if row["configuration"].startswith(ONLY)), None)
    if row is None:
        return None
    own, tuned = study.confirmed["distilled", row["configuration"]], study.confirmed["distilled", "tuned"]
    search = study.config.get("search", {})
    searched = [name for name in ("temperature", "alpha") if isinstance(search.get(name), dict)]
    return {"configuration": row["configuration"], "searched": searched,
            "gain": gain(own, study.confirmed["baseline", "tuned"]), "rest": gain(tuned, own)}


def _selected(study: StudyFiles, arm: str) -> dict[str, Any] | None:
    """What won the search, against the same configuration retrained: both on the validation images."""
    row, search = study.tuned_row(arm), SEARCH_OF[arm]
    selected, runs = study.last_accuracy(search, row["trial"]), study.trials[study.trials["stage"] == row["stage"]]
    again = runs[runs["trial"].isin(row["runs"])]["last_validation_accuracy"].dropna().astype(float)
    if selected is None or len(again) != len(row["runs"]):
        return None
    trials = study.trials[study.trials["stage"] == search]
    return {"selected": 100 * selected, "trials": len(trials), "full": int((trials["ended"] == "complete").sum()),
            "retrained": 100 * float(again.mean()), "seeds": len(again),
            "finalists": FINALIST_STAGES[0] in study.planned}


def _exported(student: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    test = mcnemar(student, baseline)
    return {"accuracy": 100 * float(student.mean()), "baseline": 100 * float(baseline.mean()),
            "only_student": test.only_first, "only_baseline": test.only_second, "p": test.p, "images": len(student)}


def _seeds(differences: np.ndarray) -> dict[str, Any]:
    return {"seeds": len(differences), "smallest": smallest_gain(differences),
            "needed": {f"{points:g}": seeds_needed(differences, points) for points in GAINS_IN_QUESTION}}
