"""The controls: what the distilled student is better than, beside the tuned baseline.

A study may run controls on the seeds of its confirmation, each of which explains a part of the gain in another way; see
`kdstudy.stages.controls`. The distilled student (the row that `confirm.primary` names) is compared with each of them as
with the baseline: paired seeds, crossed with the test images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdstudy.analysis.gain import SIGNIFICANT, gain, over_seeds
from kdstudy.analysis.looks import present_look
from kdstudy.analysis.significance import holm
from kdstudy.analysis.study_files import StudyFiles

# Each control's name in a sentence, in the order of the table.
NAMES = {"label_smoothing": "label smoothing", "placebo": "the placebo", "permuted": "permuted logits",
         "equal_compute": "equal compute", "self": "self-distillation"}


def control_rows(study: StudyFiles) -> list[dict[str, Any]]:
    """results.json's `controls`: a row per control that is done and up to date. The confirmation must be done.

    control, its name in the settings; the values of its parameters; epochs of each run; seeds; test_mean, in percent,
    and test_sd over the seeds; gain, that of the distilled student over the control, as in `gain.gain` (None with one
    seed). Its interval and p follow Holm's procedure over these controls, see `_compared`.
    """
    found = {kind: (done, _right(study, kind, done)) for kind in NAMES if (done := _current(study, kind))}
    gains = _compared(study, {kind: right for kind, (_, right) in found.items()})
    return [{
        "control": kind, **done["rows"][0]["parameters"], "epochs": done["epochs"], **over_seeds(right),
        "gain": gains[kind],
    } for kind, (done, right) in found.items()]


def current_runs(study: StudyFiles) -> dict[str, list[int]]:
    """The numbers of the runs of each control that `control_rows` has."""
    return {kind: done["rows"][0]["runs"] for kind in NAMES if (done := _current(study, kind))}


def stage_of(kind: str) -> str:
    """The stage that runs a control."""
    return f"control_{kind}"


def _current(study: StudyFiles, kind: str) -> dict[str, Any] | None:
    """The done-mark of a control; None unless it has the confirmation's seeds and rests on what that compares."""
    done = study.done(stage_of(kind))
    if done is None:
        return None
    seeds = study.done("confirm")["seeds"][: len(_distilled(study))]
    if done["seeds"] != seeds or len(done["rows"][0]["runs"]) != len(seeds):
        return None
    return done if all(parameters == _parameters(study, source) for source, parameters in done["rests_on"].items()) \
        else None


def _parameters(study: StudyFiles, source: str) -> dict[str, Any] | None:
    """Those of a confirmed arm, or of the winner of a control's search."""
    if source in ("baseline", "distilled"):
        return study.confirmed_row(source, study.primary if source == "distilled" else "tuned")["parameters"]
    return (study.done(source) or {}).get("parameters")


def _distilled(study: StudyFiles) -> np.ndarray:
    return study.confirmed["distilled", study.primary]


def _right(study: StudyFiles, kind: str, done: dict[str, Any]) -> np.ndarray:
    """Which test images a control's runs got right, (seeds, N) bool."""
    return np.stack([study.correct(run, stage_of(kind)) for run in done["rows"][0]["runs"]])


def _compared(study: StudyFiles, controls: dict[str, np.ndarray]) -> dict[str, dict[str, Any] | None]:
    """The gain of the distilled student over each control, (seeds, N) bool, by Holm's step-down procedure.

    Of k controls, that with the smallest p is tested at 1 / k of this look's level, the next at 1 / (k - 1), and so on
    until one is not shown; the rest are tested like that one (Holm, Scand. J. Statist. 6, 1979). Whatever the
    correlation, a difference is found where there is none in at most 5 % of all studies. Each interval has the
    confidence of its step, so that it leaves out zero exactly where a difference is shown.
    """
    own, level = _distilled(study), present_look(study).level
    if len(own) < 2 or not controls:
        return dict.fromkeys(controls)
    alone = [gain(own, right, level=level)["p"] for right in controls.values()]
    steps = dict(zip(controls, holm(alone, SIGNIFICANT), strict=True))
    found = {kind: gain(own, right, steps[kind], level) for kind, right in controls.items()}
    least = 0.0
    for _, kind in sorted(zip(alone, controls, strict=True)):
        least = max(least, found[kind]["p"])  # no adjusted p is smaller than that of an earlier step
        found[kind] |= {"p": least}
    return found
