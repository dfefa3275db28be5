"""The confirmed students' test predictions."""

import pandas as pd

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures import predictions as figures
from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.number_text import show_points
from kdstudy.analysis.predictions import NOTEWORTHY_CALIBRATION, Calibration
from kdstudy.analysis.study_analysis import StudyAnalysis

FEW_IMAGES = 30  # of fewer images, a share is too rough to report
MOST_NAMED = 3  # classes named in one sentence


def classes(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(name, "Which classes does the teacher help?", class_caption(analysis.classes),
                   "This needs the confirmation on at least two seeds, with predictions that differ.",
                   figures.class_gains(analysis.classes), nav="Classes")


def agreement(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(name, "Does the student imitate the teacher’s mistakes?", agreement_caption(analysis.agreement),
                   "This needs the confirmation and the teacher’s predictions.", figures.agreement(analysis.agreement),
                   group="predictions")


def calibration(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(name, "Can its confidence be trusted?", calibration_caption(analysis.calibration),
                   "This needs the confirmation, with the confidence of every prediction.",
                   figures.reliability(analysis.calibration), nav="Calibration", group="predictions")


def class_caption(classes: pd.DataFrame) -> str:
    known = classes.dropna(subset=["low"])
    if known.empty:
        return ""
    shown = figures.shown_classes(classes)
    left = "" if len(shown) == len(known) else (
        f" Shown are the {len(shown)} classes at both ends; all are in results/classes.csv.")
    return (f"{_gain_sentence(classes)} A class has {classes['images'].median():.0f} test images. Among so many "
            "classes some gain by chance: p-values are adjusted for their number (Benjamini and Hochberg), intervals "
            f"are not.{left}")


def _gain_sentence(classes: pd.DataFrame) -> str:
    """How many classes gain and lose beyond chance, and which ones most."""
    known = classes.dropna(subset=["p_adjusted"])
    certain = known[known["p_adjusted"] < SIGNIFICANT]
    better = certain[certain["gain"] > 0].sort_values("gain", ascending=False)
    worse = certain[certain["gain"] < 0].sort_values("gain")
    text = f"{len(better)} of {len(known)} classes gain beyond chance"
    if len(better):
        text += f", most of all {_named(better)}"
    text += f"; {len(worse) or 'none'} {'loses' if len(worse) < 2 else 'lose'} beyond chance"
    return text + (f": {_named(worse)}." if len(worse) else ".")


def _named(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.name} ({show_points(row.gain)})" for row in rows[:MOST_NAMED].itertuples(index=False))


def agreement_caption(shares: pd.DataFrame) -> str:
    if shares.empty:
        return ""
    table = shares[shares["images"] > 0].set_index(["arm", "teacher"])["agreement"]
    if ("distilled", "wrong") not in table:
        return "The teacher made no mistake on the test images, so there is none to imitate."
    mistakes = int(shares.loc[shares["teacher"] == "wrong", "images"].max())
    if mistakes < FEW_IMAGES:
        return (f"The teacher is wrong on only {mistakes} of the test images: too few to say whether the student "
                "imitates its mistakes. On the left, the predictions where the teacher is right.")
    own, other = (round(table[arm, "wrong"]) for arm in ("distilled", "baseline"))
    than = "as often as" if own == other else f"{abs(own - other)} points {'more' if own > other else 'less'} than"
    return (f"Where the teacher is wrong, the distilled student makes the same mistake in {own} % of the cases, "
            f"{than} the baseline, which has never seen the teacher. The difference between the two bars is what the "
            "student took from the teacher: correct on the left, wrong on the right. Whiskers: the standard deviation "
            "over seeds.")


def calibration_caption(measured: Calibration | None) -> str:
    if measured is None:
        return ""
    text = ("Below the diagonal a model is more confident than it is accurate. The legend gives the expected "
            "calibration error, 15 bins; marks grow with the number of predictions.")
    errors = measured.errors.set_index("arm")
    if not {"baseline", "distilled"} <= set(errors.index):
        return text
    own, other = errors.loc["distilled"], errors.loc["baseline"]
    if abs(own["error"] - other["error"]) <= NOTEWORTHY_CALIBRATION:
        return text
    way = "over-confident" if own["overconfidence"] > 0 else "under-confident"
    word = f"{way}: its confidence is off by {own['error']:.1f} points" if own["error"] > other["error"] else (
        f"better calibrated: its confidence is off by {own['error']:.1f} points")
    return f"The distilled student is {word}, the baseline’s by {other['error']:.1f}. {text}"
