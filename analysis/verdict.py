"""The verdict and its scope: what a study found, and for what that holds.

results.json, results.md and the README's blocks hold these sentences, so a change of a word changes committed files.
"""

from typing import Any

from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.number_text import show_interval, show_points
from kdstudy.analysis.significance import wilson_interval
from kdstudy.analysis.study_files import StudyFiles, is_row


def verdict(outcome: dict[str, Any]) -> str:
    """Whether distillation helps, in one sentence."""
    if _row(outcome, "distilled", "tuned") is None:
        return "No verdict yet: the confirmation has not been run."
    gain = outcome["gain"]
    if gain is None:
        return "No verdict: one seed allows no interval; set confirm.seeds to at least 2, better 5."
    figures = f"{show_interval(gain)} over the tuned baseline on {gain['seeds']} paired seeds"
    unseen = outcome["data"]["train"] - outcome["data"]["student_train"]
    saw = "saw only without labels" if outcome["data"].get("unlabelled") else "never saw"
    if gain["p"] >= SIGNIFICANT:
        few = f"; few-label transfer: the teacher saw {unseen} images that the student {saw}" if unseen else ""
        return f"No gain from distillation shown: {figures}, which includes zero{few}."
    if gain["mean"] < 0:
        return f"Distillation hurts: {figures}."
    few = f"; few-label transfer: the gain includes knowledge of {unseen} images that the student {saw}"
    return f"Distillation helps: {figures}{few if unseen else ''}{_unsure_over_default(outcome)}."


def _unsure_over_default(outcome: dict[str, Any]) -> str:
    """A reservation: the default baseline did better than the tuned one, and no gain over it is shown."""
    over = outcome["gain_over_default_baseline"]
    if over is None or over["mean"] >= outcome["gain"]["mean"] or over["p"] < SIGNIFICANT:
        return ""
    return f"; but {show_interval(over)} over the baseline at its default point, which did better on the fresh seeds"


def scope(study: StudyFiles, outcome: dict[str, Any]) -> str:
    """For what the verdict holds, and what else a reader must know to quote it."""
    confirm = study.confirmation
    if confirm is None:
        return "Scope: the confirmation on fresh seeds is still to come."
    text = (f"Scope: this teacher, this split, this search; {outcome['data']['test']} test images, "
            f"{len(confirm['rows'][0]['runs'])} fresh seeds, last epoch, tested once.")
    return " ".join(filter(None, [text, _duplicates(outcome), _samples(outcome["gain"]), _weak_teacher(outcome),
                                  _guessing(outcome), _better_default(outcome)]))


def _duplicates(outcome: dict[str, Any]) -> str:
    shared = (outcome["data"].get("duplicates") or {}).get("train_test", 0)
    if not shared or outcome["data"].get("dropped"):
        return ""
    return f"{shared} of the training images {'is' if shared == 1 else 'are'} among the test images too."


def _samples(gain: dict[str, Any] | None) -> str:
    """How the interval compares with the one over seeds alone."""
    if gain is None:
        return ""
    text = "The interval treats seeds and test images as samples"
    bounds = [show_points(interval[end]) for interval in (gain, gain["seeds_only"]) for end in ("low", "high")]
    if bounds[:2] == bounds[2:]:
        return f"{text}; the {gain['seeds']} seeds alone already leave this much open."
    return f"{text}; over seeds alone, for these very images, it is {bounds[2]} to {bounds[3]}."


def _weak_teacher(outcome: dict[str, Any]) -> str:
    teacher = next((row["test_mean"] for row in outcome["rows"] if row["arm"] == "teacher"), None)
    tuned = _row(outcome, "baseline", "tuned")["test_mean"]
    if teacher is None or teacher >= tuned:
        return ""
    return (f"The teacher itself ({teacher:.2f} %) is {tuned - teacher:.2f} points worse than the tuned "
            "baseline: a better one may teach more.")


def _guessing(outcome: dict[str, Any]) -> str:
    """A warning where even the best student's Wilson interval, for the test images of one seed, includes chance."""
    best = max((row["test_mean"] for row in outcome["rows"] if row["arm"] != "teacher"), default=0.0)
    classes = len(outcome["data"]["classes"])
    if wilson_interval(best / 100, outcome["data"]["test"])[0] > 1 / classes:
        return ""
    return (f"No student does better than guessing one of {classes} classes: this shows that the study runs, and "
            "nothing about distillation.")


def _better_default(outcome: dict[str, Any]) -> str:
    """A note where the baseline did better at its default point than at the point that its search chose."""
    default, untuned = outcome["gain_over_default_baseline"], _row(outcome, "baseline", "default")
    if not default or not untuned["gain"] or untuned["gain"]["mean"] <= 0:
        return ""
    return ("On the fresh seeds the baseline did better at its default point than at the point that the search "
            f"chose; over the default baseline the gain is {show_interval(default)}.")


def _row(outcome: dict[str, Any], arm: str, configuration: str) -> dict[str, Any] | None:
    return next((row for row in outcome["rows"] if is_row(row, arm, configuration)), None)
