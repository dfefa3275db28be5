"""What a reader must know before believing the gain, for gains and losses alike. Each caution is part of the verdict.

results.json, results.md and the README's blocks hold these sentences, so a change of a word changes committed files.
"""

from typing import Any

import numpy as np

from kdstudy.analysis.gain import SIGNIFICANT, gain
from kdstudy.analysis.learned import FailedRun, Rise, at_chance, in_comparison, which_failed
from kdstudy.analysis.looks import present_look
from kdstudy.analysis.number_text import counted, show_interval, show_points
from kdstudy.analysis.study_files import ARMS, StudyFiles, find_row


def cautions(study: StudyFiles, outcome: dict[str, Any], failed: list[FailedRun],
             rising: dict[str, Rise]) -> list[str]:
    """Sentences without a capital and a full stop, the weightiest first. The confirmation must be done.

    failed, rising: of `kdstudy.analysis.learned`.
    """
    found = [_guessing(outcome), _failed(study, outcome, failed), _over_default(outcome), _still_rising(rising),
             _weak_teacher(outcome)]
    return [text for text in found if text]


def all_guess(outcome: dict[str, Any]) -> bool:
    """Whether no student does better than guessing."""
    best = max((row["test_mean"] for row in outcome["rows"] if row["arm"] != "teacher"), default=0.0)
    return at_chance(best / 100, outcome["data"]["test"], outcome["chance"] / 100)


def guessing(outcome: dict[str, Any]) -> str:
    """How one can guess best."""
    classes = len(outcome["data"]["classes"])
    if outcome["chance"] > 100 / classes + 1e-9:
        return f"always guessing the commonest class ({outcome['chance']:.1f} %)"
    return f"guessing one of {classes} classes"


def _guessing(outcome: dict[str, Any]) -> str:
    """The teacher and the arms that do not do better than guessing."""
    images = outcome["data"]["test"]
    rows = [("the teacher", next((row for row in outcome["rows"] if row["arm"] == "teacher"), None)),
            ("the tuned baseline", find_row(outcome, "baseline", "tuned")),
            ("the distilled student", find_row(outcome, "distilled", outcome["primary"]))]
    named = [f"{name} ({row['test_mean']:.1f} %)" for name, row in rows
             if row and at_chance(row["test_mean"] / 100, images, outcome["chance"] / 100)]
    if not named:
        return ""
    verb = "is" if len(named) == 1 else "are"
    return f"{' and '.join(named)} {verb} no better than {guessing(outcome)}"


def _failed(study: StudyFiles, outcome: dict[str, Any], failed: list[FailedRun]) -> str:
    """Runs of the comparison that failed to learn, and the gain without their pairs. Others are in the scope."""
    concerned = in_comparison(study, failed)
    if not concerned:
        return ""
    lost = sorted({run.index for run in concerned})
    right, baseline = (np.delete(study.confirmed[key], lost, axis=0)
                       for key in (("distilled", outcome["primary"]), ("baseline", "tuned")))
    rest, pairs = gain(right, baseline, level=present_look(study).level), "their pairs" if len(lost) > 1 else "its pair"
    without = f"the gain is {show_interval(rest)}" if rest else "too few seeds are left for an interval"
    return (f"{counted(len(concerned), 'run')} failed to learn ({which_failed(concerned)}); without {pairs} "
            f"{without}")


def _over_default(outcome: dict[str, Any]) -> str:
    """Nothing is shown over the baseline at its default point, although it is over the tuned one."""
    over, own = outcome["gain_over_default_baseline"], outcome["gain"]
    if over is None or own is None or own["p"] >= SIGNIFICANT:
        return ""
    if over["p"] < SIGNIFICANT and over["mean"] * own["mean"] > 0:
        return ""
    what = "gain" if own["mean"] > 0 else "loss"
    return f"no {what} is shown over the baseline at its default point: {show_interval(over)}"


def _still_rising(rising: dict[str, Rise]) -> str:
    if not rising:
        return ""
    shown = " and ".join(f"{show_points(rise.points)} points from epoch {rise.first} to {rise.last} in the {ARMS[arm]} "
                         "search" for arm, rise in rising.items())
    return f"accuracy still rose at the end ({shown}), so longer training may change the gain"


def _weak_teacher(outcome: dict[str, Any]) -> str:
    teacher = next((row["test_mean"] for row in outcome["rows"] if row["arm"] == "teacher"), None)
    tuned = find_row(outcome, "baseline", "tuned")
    if teacher is None or tuned is None or teacher >= tuned["test_mean"]:
        return ""
    return (f"the teacher itself ({teacher:.2f} %) is {tuned['test_mean'] - teacher:.2f} points worse than the tuned "
            "baseline")
