"""Teachers as a sample: the gain over several teachers that differ in their seed alone (`teacher.replicates`).

The student that is the study's answer is distilled from every teacher on every seed; the baseline, which has no
teacher, runs once per seed. Only the gain over the tuned baseline is crossed with teachers: all other comparisons hold
for the first teacher.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdstudy.analysis.gain import gain, gain_over_teachers, over_seeds
from kdstudy.analysis.looks import present_look
from kdstudy.analysis.stage_names import FURTHER_TEACHERS
from kdstudy.analysis.study_files import StudyFiles


def crossed(study: StudyFiles) -> np.ndarray | None:
    """Which test images the study's answer got right, (teachers, seeds, N) bool, the first teacher first.

    None with one teacher, and until all that the settings ask for have taught the present winner on the present seeds.
    The confirmation must be done."""
    wanted = teachers_wanted(study)
    found = [_right(study, number) for number in FURTHER_TEACHERS if number <= wanted]
    if not found or any(right is None for right in found):
        return None
    return np.stack([study.confirmed["distilled", study.primary], *found])


def crossed_gain(study: StudyFiles) -> dict[str, Any] | None:
    """The gain of the study's answer over all its teachers, see `gain_over_teachers`, at this look's level; None where
    `crossed` is, and with one seed."""
    right = crossed(study)
    if right is None:
        return None
    return gain_over_teachers(right, study.confirmed["baseline", "tuned"], present_look(study).level)


def teacher_rows(study: StudyFiles) -> list[dict[str, Any]]:
    """results.json's `teachers`: a row per teacher, where there are several. The confirmation must be done.

    teacher, its number; teacher_accuracy on the test images and best_validation, test_mean of its students, all
    in percent; test_sd over the seeds; gain of its students over the tuned baseline, as in `gain.gain`, with an
    interval for this teacher alone (None with one seed).
    """
    right = crossed(study)
    if right is None:
        return []
    baseline, level = study.confirmed["baseline", "tuned"], present_look(study).level
    return [_row(study, number, own, gain(own, baseline, level=level)) for number, own in enumerate(right, 1)]


def teachers_wanted(study: StudyFiles) -> int:
    return study.config.get("teacher", {}).get("replicates", 1)


def crossed_runs(study: StudyFiles) -> set[tuple[str, int]]:
    """The stages and numbers of the runs of further teachers' students that `crossed` has."""
    if crossed(study) is None:
        return set()
    return {(stage_of(number), run) for number in FURTHER_TEACHERS if number <= teachers_wanted(study)
            for run in study.done(stage_of(number))["rows"][0]["runs"]}


def stage_of(number: int) -> str:
    """The stage with the students of a further teacher."""
    return f"confirm_teacher_{number}"


def _right(study: StudyFiles, number: int) -> np.ndarray | None:
    """Which test images the students of a further teacher got right, (seeds, N); None unless they are the present
    winner on the present seeds."""
    done, row = study.done(stage_of(number)), study.confirmed_row("distilled", study.primary)
    if done is None:
        return None
    own, seeds = done["rows"][0], study.done("confirm")["seeds"][: len(row["runs"])]
    if done["seeds"] != seeds or (own["configuration"], own["parameters"]) != (study.primary, row["parameters"]):
        return None
    return np.stack([study.correct(run, stage_of(number)) for run in own["runs"]])


def _row(study: StudyFiles, number: int, right: np.ndarray, own_gain: dict[str, Any] | None) -> dict[str, Any]:
    name = "teacher" if number == 1 else f"teacher_{number}"
    done, correct = study.done(name), study.teacher_correct("teacher_logits" if number == 1 else f"{name}_logits")
    return {"teacher": number, "best_validation": 100 * done["best_validation"],
            "teacher_accuracy": None if correct is None else 100 * float(correct.mean()),
            **over_seeds(right), "gain": own_gain}
