"""What else is known about the gain: does it come from the teacher, was the winner lucky, how many seeds are needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdstudy.analysis.families import compare, only_row
from kdstudy.analysis.looks import present_look
from kdstudy.analysis.significance import mcnemar, seeds_needed, smallest_gain
from kdstudy.analysis.study_files import FINALIST_STAGES, SEARCH_OF, SEARCH_STAGES, StudyFiles
from kdstudy.analysis.teachers import crossed

GAINS_IN_QUESTION = (0.5, 1.0, 2.0, 5.0)  # percentage points


def evidence(study: StudyFiles) -> dict[str, Any] | None:
    """results.json's `evidence`; None while the study is not confirmed. A part is None where it cannot be known.

    Accuracies are in percent, gains in percentage points (the keys of `kdstudy.analysis.gain.gain`).

    Which intervals hold together: see `kdstudy.analysis.families`.

    default: the gain at the default point, over the baseline at its default point.
    only: configuration, the one that tunes only what both arms share; gain, its gain over the tuned baseline; rest, the
        gain of the tuned distillation over it; searched, what that rest comes from (temperature, alpha, the loss).
    selected: per arm, of the search's winner: selected, the validation accuracy that won, among `trials` trials, `full`
        of them at the full budget; retrained, its mean over `seeds` fresh seeds; finalists, whether finalists decided.
    exported: the exported student against the tuned baseline of the same seed: seed, accuracy, baseline, the
        numbers of images that only one of them got right, and the exact McNemar test's p. None where one of them
        diverged.
    seeds: smallest, the gain that this many seeds would find at this look's level, None above 100 points; needed, the
        seeds that a given gain needs in a study with a single look. None with several teachers.
    """
    if study.confirmation is None:
        return None
    confirmed = study.confirmed
    baseline = confirmed["baseline", "tuned"]
    primary = confirmed["distilled", study.primary]
    several = len(baseline) > 1
    return {
        "default": compare(study, ("distilled", "default"), ("baseline", "default")),
        "only": _only(study) if several else None,
        "selected": {arm: _selected(study, arm) for arm in SEARCH_OF},
        "exported": _exported(study),
        "seeds": _seeds(100 * (primary.astype(float) - baseline.astype(float)), present_look(study).level)
        if several and crossed(study) is None else None,
    }


def _only(study: StudyFiles) -> dict[str, Any] | None:
    row = only_row(study)
    if row is None:
        return None
    own = "distilled", row["configuration"]
    rest = compare(study, ("distilled", "tuned"), own)
    if rest is None:
        return None  # the configuration chosen is this one
    search = study.config.get("search", {})
    searched = [name for name in study.parameter_names
                if name in study.of_distillation and isinstance(search.get(name), dict)]
    return {"configuration": row["configuration"], "searched": searched,
            "gain": compare(study, own, ("baseline", "tuned")), "rest": rest}


def _selected(study: StudyFiles, arm: str) -> dict[str, Any] | None:
    """The search's winner against the same configuration retrained, both on the validation images."""
    row, search = study.confirmed_row(arm), SEARCH_OF[arm]
    selected, runs = study.last_accuracy(search, row["trial"]), study.trials[study.trials["stage"] == row["stage"]]
    again = runs[runs["trial"].isin(row["runs"])]["last_validation_accuracy"].dropna().astype(float)
    if selected is None or len(again) != len(row["runs"]):
        return None
    trials = study.trials[study.trials["stage"] == search]
    return {"selected": 100 * selected, "trials": len(trials), "full": int((trials["ended"] == "complete").sum()),
            "retrained": 100 * float(again.mean()), "seeds": len(again),
            "finalists": FINALIST_STAGES[SEARCH_STAGES.index(search)] in study.planned}


def _exported(study: StudyFiles) -> dict[str, Any] | None:
    index, baseline_row = study.exported_index(), study.confirmed_row("baseline")
    if index is None or baseline_row["runs"][index] in study.failed_runs(baseline_row["stage"]):
        return None
    student, baseline = study.confirmed["distilled", "tuned"][index], study.confirmed["baseline", "tuned"][index]
    test = mcnemar(student, baseline)
    return {"seed": study.done("confirm")["seeds"][index], "accuracy": 100 * float(student.mean()),
            "baseline": 100 * float(baseline.mean()), "only_student": test.only_first,
            "only_baseline": test.only_second, "p": test.p, "images": len(student)}


def _seeds(differences: np.ndarray, level: float) -> dict[str, Any]:
    return {"seeds": len(differences), "smallest": smallest_gain(differences, confidence=1 - level, most=100.0),
            "needed": {f"{points:g}": seeds_needed(differences, points) for points in GAINS_IN_QUESTION}}
