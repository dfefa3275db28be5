"""What the report shows and in which order: every figure with its heading, its caption and its warnings, and the cards
under the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis import effect_figures, example_figures, figures, look, sensitivity
from kdstudy.analysis.examples import Calibration, calibration, per_class, teacher_agreement
from kdstudy.analysis.results import StudyFiles
from kdstudy.analysis.tables import SIGNIFICANT, show_points

SMALL_P = 1e-4
NOTEWORTHY_CALIBRATION = 2.0  # points
FEW_IMAGES = 30  # a share of fewer says little


@dataclass(frozen=True)
class Exhibit:
    """A figure with its heading and caption, or the sentence that stands in its place. `narrow` is for phones.

    notes: (kind, sentence) above the caption; a kind is `finding`, `note` or `warning`. nav: its name in the page's
    list of contents, if it is in it. group: neighbours of one group stand side by side where there is room.
    """

    name: str
    heading: str
    caption: str
    absent: str
    figure: go.Figure | None
    narrow: go.Figure | None = None
    notes: tuple[tuple[str, str], ...] = ()
    nav: str = ""
    group: str = ""


@dataclass(frozen=True)
class Card:
    """One number under the verdict, and what it means."""

    title: str
    figure: str
    text: str


@dataclass(frozen=True)
class Findings:
    """What the sections are made of, computed once."""

    sensitivity: dict[str, Any]
    correlations: pd.DataFrame
    classes: pd.DataFrame
    agreement: pd.DataFrame
    calibration: Calibration | None

    @classmethod
    def of(cls, study: StudyFiles) -> Findings:
        return cls(sensitivity.analyse(study), sensitivity.rung_correlations(study), per_class(study),
                   teacher_agreement(study), calibration(study))


def exhibits(study: StudyFiles, outcome: dict[str, Any], found: Findings) -> list[Exhibit]:
    """All figures of the page, in its order; the gains first."""
    gains = Exhibit("gain", "Gain over the tuned baseline",
                    "Test accuracy over that of the tuned baseline, seed by seed. An interval that reaches zero leaves "
                    "open whether there is a gain; one that lies beyond it shows one, of a size within the interval.",
                    "", figures.gain_intervals(outcome))
    return [gains, *_effects(study, outcome, found), *_searches(study, found), *_answers(found), _budget(study)]


# ---------------------------------------------------------------------------------------------------------------------
# The verdict's cards


def cards(outcome: dict[str, Any], measured: Calibration | None) -> list[Card]:
    """What a careful colleague would add to the verdict; none while there is no gain with an interval."""
    gain, evidence = outcome["gain"], outcome["evidence"]
    if gain is None:
        return []
    found = [_gain_card(gain), _only_card(evidence["only"]), _luck_card(evidence["selected"]["distilled"]),
             _power_card(evidence["seeds"]), _confidence_card(measured), _checkpoint_card(evidence["exported"])]
    return [card for card in found if card]


def _gain_card(gain: dict[str, Any]) -> Card:
    return Card("Gain over the tuned baseline", f"{show_points(gain['mean'])} points",
                f"95 % interval {_span(gain)} over {gain['seeds']} paired seeds and {gain['images']:,} test images, "
                f"{_p(gain['p'])}.")


def _only_card(only: dict[str, Any] | None) -> Card | None:
    if only is None:
        return None
    rest, own = only["rest"], only["gain"]
    sure = "" if rest["p"] < SIGNIFICANT else ", which includes zero"
    names = " and ".join(look.SYMBOLS[name] for name in only["searched"])
    return Card(f"What tuning {names} adds", f"{show_points(rest['mean'])} points",
                f"95 % interval {_span(rest)}{sure}. With {only['configuration']}, T and α at their defaults, "
                f"distillation gains {show_points(own['mean'])} ({_span(own)}) over the tuned baseline.")


def _luck_card(selected: dict[str, Any] | None) -> Card | None:
    if selected is None:
        return None
    chosen = ("then chosen among the finalists, on other seeds" if selected["finalists"]
              else f"the best of {selected['full']} at the full budget")
    return Card("The winner’s luck", f"{selected['selected']:.1f} → {selected['retrained']:.1f} %",
                f"Validation accuracy in the search ({chosen}, of {selected['trials']} trials), and the mean of the "
                f"same configuration on {selected['seeds']} fresh seeds. Quote its test accuracy, in the table.")


def _power_card(seeds: dict[str, Any] | None) -> Card | None:
    if seeds is None or not seeds["smallest"] > 0:  # where nothing varies, nothing is known of how it might
        return None
    smallest = seeds["smallest"]
    open_questions = [(float(gain), count) for gain, count in seeds["needed"].items() if float(gain) < smallest]
    text = f"That much, if true, {seeds['seeds']} seeds find in four of five studies at the spread seen here"
    if open_questions:
        gain, count = open_questions[-1]
        text += (f"; {gain:g} {'point' if gain == 1 else 'points'} would need {count} seeds" if count else
                 f"; {gain:g} {'point' if gain == 1 else 'points'} no number of seeds, but more test images")
    return Card("The smallest gain it could detect", f"{smallest:.1f} points", f"{text}.")


def _confidence_card(measured: Calibration | None) -> Card | None:
    """Only where distillation changes how far confidence can be trusted."""
    errors = measured.errors.set_index("arm")["error"] if measured else {}
    if not {"baseline", "distilled"} <= set(getattr(errors, "index", ())):
        return None
    before, after = errors["baseline"], errors["distilled"]
    if abs(after - before) < NOTEWORTHY_CALIBRATION:
        return None
    worse = after > before
    return Card(f"Its confidence is {'less' if worse else 'more'} reliable", f"{before:.1f} → {after:.1f} points",
                "Expected calibration error of the tuned baseline and of the distilled student. Where probabilities "
                f"are used, not only answers, {'calibrate the student anew' if worse else 'that is a gain too'}.")


def _checkpoint_card(exported: dict[str, Any]) -> Card:
    return Card("These very weights", f"{exported['accuracy']:.1f} against {exported['baseline']:.1f} %",
                f"The exported student and the tuned baseline of the same seed: of {exported['images']:,} test images "
                f"{exported['only_student']} are right in the first alone and {exported['only_baseline']} in the "
                f"second alone (exact McNemar test, {_p(exported['p'])}). It speaks of these two checkpoints, not of "
                "distillation.")


def _span(interval: dict[str, Any]) -> str:
    return f"{show_points(interval['low'])} to {show_points(interval['high'])}"


def _p(value: float) -> str:
    return f"two-sided p < {SMALL_P:g}" if value < SMALL_P else f"two-sided p = {value:.2g}"


# ---------------------------------------------------------------------------------------------------------------------
# What the hyperparameters do


def _effects(study: StudyFiles, outcome: dict[str, Any], found: Findings) -> list[Exhibit]:
    known, missing = found.sensitivity, found.sensitivity.get("missing", "")
    arm, ranges = look.ARMS[known["arm"]], effect_figures.ranges(known)
    said = (*sensitivity.statements(study, known, found.correlations), *_retrained(outcome, known))
    at = f"at epoch {known['budget']}" if "budget" in known else ""
    basis = _basis(known)
    first, second = (look.SYMBOLS.get(name, name.replace("_", " ")) for name in known.get("map_of") or ("T", "α"))
    return [
        Exhibit("price", "The price of not tuning",
                f"Points of validation accuracy that the {arm} loses {at} where "
                f"{_left(known)}. Where the interval lies above zero (filled), tuning that parameter pays; "
                f"where it includes zero (open), the search does not show that it does. {basis}",
                missing, effect_figures.price_of_not_tuning(known), notes=said, nav="Price of not tuning"),
        Exhibit("effect-curves", "What each parameter does",
                f"Solid: the best that any setting of the others reaches {at}. Dashed: the average over their ranges. "
                "Bands are 90 % intervals of the fitted surface; where a solid line is flat within its band, no effect "
                "of the parameter is shown. Marks are real trials, which also carry their seed’s luck.",
                missing, effect_figures.effect_curves(study, known),
                effect_figures.effect_curves(study, known, columns=1), nav="Effects"),
        Exhibit("map", f"{first} and {second} together, the rest at its best",
                "Fitted, with the uncertainty of the curves above; brighter is better. Where the bright region is "
                "wide, the exact point hardly matters; where it runs diagonally, the two must be tuned together. "
                f"{_best(known)}",
                missing or "Fewer than two parameters were searched, so there is no map.",
                effect_figures.best_map(study, known), nav="Map"),
        Exhibit("effects", f"Which parameter explains the differences, over {ranges}" if not missing
                else "Which parameter explains the differences?",
                "Shares of the variance of accuracy over the whole ranges, and over the part of the space within "
                f"{sensitivity.NEAR_BEST:g} points of the best ({_near_share(known)}), where it matters. A parameter "
                "that rules the whole space may be settled near the best. Shares depend on the ranges much more than "
                "the prices above do.", missing, effect_figures.effects(known)),
    ]


def _left(known: dict[str, Any]) -> str:
    if len(known["searched"]) == 1:
        return "the parameter stays at its default"
    return "one parameter stays at its default and all others are tuned again"


def _basis(known: dict[str, Any]) -> str:
    counts = known.get("counts")
    if counts is None:
        return ""
    where = "at the full budget" if known["budget"] == known["epochs"] else "that far"
    own = f"{counts['protected']} of the {look.ARMS[known['arm']]}’s protected"
    return f"From {counts['reports']} reports of {counts['trials']} trials, {counts['full']} of them {where} ({own})."


def _retrained(outcome: dict[str, Any], known: dict[str, Any]) -> list[tuple[str, str]]:
    """The search's estimates and the retrained runs are two measurements: which to believe."""
    only = (outcome["evidence"] or {}).get("only")
    if only is None or "missing" in known:
        return []
    names = " and ".join(look.SYMBOLS[name] for name in only["searched"])
    shared = only["configuration"].removeprefix("only ").removesuffix(" tuned")
    return [("note", "These prices are the search’s own estimates. The retrained runs count for more: there, tuning "
                     f"{names} beyond {shared} is worth {show_points(only['rest']['mean'])} points of test accuracy "
                     f"(95 % interval {_span(only['rest'])}).")]


def _best(known: dict[str, Any]) -> str:
    if "best" not in known:
        return ""
    point = ", ".join(f"{look.SYMBOLS.get(name, name.replace('_', ' '))} {look.show(value)}"
                      for name, value in known["best"]["parameters"].items())
    best = known["best"]
    return (f"The surface is best at {point}: {best['accuracy']:.1f} % ({best['low']:.1f} to {best['high']:.1f}); a "
            "winner above that owes a part to its seed.")


def _near_share(known: dict[str, Any]) -> str:
    return f"{100 * known['near_share']:.0f} % of it" if "near_share" in known else "a part of it"


# ---------------------------------------------------------------------------------------------------------------------
# The searches


def _searches(study: StudyFiles, found: Findings) -> list[Exhibit]:
    full = study.description.get("epochs") or 0
    return [
        Exhibit("rungs", "Do early epochs predict the end?",
                f"Rank correlation of {_ranked(found.correlations)} accuracies at each rung with those at the end "
                "(1: the same order). Early stopping decides at the rungs. Below the dashed line, a rule of thumb, the "
                "early order is a poor guide; from so few trials the value itself is rough.",
                "There are no rungs, or too few trials have passed them, to compare rankings.",
                effect_figures.rung_correlations(found.correlations, full), nav="Early stopping"),
        _curves(study, "distill", "Learning curves: distillation", nav="Learning curves"),
        _curves(study, "baseline", "Learning curves: baseline"),
        Exhibit("parallel", "Every distillation trial as a line",
                "Follow the thick lines from right to left: where they come together, the best trials agree on a "
                "parameter; where they fan out, it does not matter or is not settled. Dotted: stopped early, so that "
                "their last accuracy is of an earlier epoch.",
                "Fewer than two trials of the distillation have ended.", figures.parallel_coordinates(study),
                figures.parallel_coordinates(study, short=True)),
        Exhibit("history", "What the searches found, trial by trial",
                "The last validation accuracy of each trial, in the order in which the trials were proposed. A line "
                "that still rises at the right says that more trials might find more. Trials that are not at the full "
                "budget stand below, on a scale of their own: their values do not compare.",
                "No search has a trial to show yet.",
                figures.optimisation_history(study), figures.optimisation_history(study, columns=1)),
        Exhibit("slices", "Every trial against each parameter",
                "Each trial appears once per parameter, so the others vary along with it. The baseline appears where "
                "it searches the same parameter.", "No trial of a searched parameter has reported yet.",
                figures.slices(study), figures.slices(study, columns=1)),
        Exhibit("teacher", "Learning curves: teacher", "One line per learning rate that was tried.",
                "The teacher has not reported yet, or was given.", figures.teacher_curve(study)),
    ]


def _ranked(correlations: pd.DataFrame) -> str:
    """Whose: a search with too few protected trials is ranked by all that came so far, which stopping has selected."""
    if correlations["protected"].all():
        return "the protected trials’"
    return "trials’ (of an arm with few protected ones: of all that came so far, a selection)"


def _curves(study: StudyFiles, stage: str, heading: str, nav: str = "") -> Exhibit:
    ended = study.trials.loc[study.trials["stage"] == stage, "ended"].value_counts()
    words = {"complete": "at the full budget", "stopped": "stopped early", "running": "running", "failed": "failed"}
    counts = ", ".join(f"{ended[state]} {text}" for state, text in words.items() if state in ended)
    caption = f"{ended.sum()} {'trial' if ended.sum() == 1 else 'trials'}: {counts}."
    if rungs := study.description.get("rungs"):
        caption += (f" Dotted: the {'rung' if len(rungs) == 1 else 'rungs'}, epoch {', '.join(map(str, rungs))}, where "
                    "trials behind the others may be stopped; an open circle marks where one was.")
    return Exhibit(f"curves-{stage}", heading, caption, f"No {look.ARMS[stage]} trial has reported yet.",
                   figures.learning_curves(study, stage), nav=nav)


def _budget(study: StudyFiles) -> Exhibit:
    spent = study.spent
    taken = [stage for stage in study.planned if "taken_from" in (study.done(stage) or {})]
    caption = ""
    if len(spent):
        saved = spent.loc[spent["kind"] == "saved", "seconds"].sum()
        rest = spent["seconds"].sum() - saved
        first = (f"Early stopping saved {100 * saved / (saved + rest):.0f} % of the training time that the same trials "
                 "would have taken to their ends" if saved else "No trial was stopped early")
        others = f"; taken from another study: {', '.join(taken).replace('_', ' ')}" if taken else ""
        caption = (f"{first}{others}. Time is summed over trials that ran side by side, so it is "
                   "more than went by on the clock; computing the teacher’s logits is not in it.")
    return Exhibit("budget", "Where the time went", caption, "No trial has reported its time yet.",
                   figures.budget(spent), nav="Budget")


# ---------------------------------------------------------------------------------------------------------------------
# The confirmed students' answers


def _answers(found: Findings) -> list[Exhibit]:
    later = "This needs the confirmation on at least two seeds, with answers that differ."
    return [
        Exhibit("classes", "Which classes does the teacher help?", _class_caption(found.classes), later,
                example_figures.class_gains(found.classes), nav="Classes"),
        Exhibit("agreement", "Does the student imitate the teacher’s mistakes?", _agreement_caption(found.agreement),
                "This needs the confirmation and the teacher’s answers.", example_figures.agreement(found.agreement),
                group="answers"),
        Exhibit("calibration", "Can its confidence be trusted?", _calibration_caption(found.calibration),
                "This needs the confirmation, with the confidence of every answer.",
                example_figures.reliability(found.calibration), nav="Calibration", group="answers"),
    ]


def _class_caption(classes: pd.DataFrame) -> str:
    if classes.dropna(subset=["low"]).empty:
        return ""
    shown = example_figures.shown_classes(classes)
    left = "" if len(shown) == len(classes.dropna(subset=["low"])) else (
        f" Shown are the {len(shown)} classes at both ends; all are in results/classes.csv.")
    images = classes["images"].median()
    return (f"{example_figures.gain_sentence(classes)} A class has {images:.0f} test images. Among so many classes "
            "some gain by chance: p-values are adjusted for their number (Benjamini and Hochberg), the intervals are "
            f"not.{left}")


def _agreement_caption(shares: pd.DataFrame) -> str:
    if shares.empty:
        return ""
    table = shares[shares["images"] > 0].set_index(["arm", "teacher"])["agreement"]
    if ("distilled", "wrong") not in table:
        return "The teacher made no mistake on the test images, so there is none to imitate."
    mistakes = int(shares.loc[shares["teacher"] == "wrong", "images"].max())
    if mistakes < FEW_IMAGES:
        return (f"The teacher is wrong on only {mistakes} of the test images: too few to say whether the student "
                "imitates its mistakes. On the left, the student’s answers where the teacher is right.")
    own, other = (round(table[arm, "wrong"]) for arm in ("distilled", "baseline"))
    than = "as often as" if own == other else f"{abs(own - other)} points {'more' if own > other else 'less'} than"
    return (f"Where the teacher is wrong, the distilled student repeats its very mistake in {own} % of the cases, "
            f"{than} the baseline, which has never seen the teacher. What its bar has over the baseline’s is what it "
            "took from the teacher: rightly on the left, wrongly on the right. Whiskers: the seeds’ standard "
            "deviation.")


def _calibration_caption(measured: Calibration | None) -> str:
    if measured is None:
        return ""
    errors = measured.errors.set_index("arm")
    text = ("Below the diagonal a model is surer than it is right. The legend gives the expected calibration error, "
            "15 bins; marks grow with the number of answers.")
    if {"baseline", "distilled"} <= set(errors.index):
        own, other = errors.loc["distilled"], errors.loc["baseline"]
        if abs(own["error"] - other["error"]) > NOTEWORTHY_CALIBRATION:
            way = "over-confident" if own["overconfidence"] > 0 else "under-confident"
            word = f"{way}: its confidence is off by {own['error']:.1f} points" if own["error"] > other["error"] else (
                f"better calibrated: off by {own['error']:.1f} points")
            text = (f"The distilled student is {word}, the baseline’s by {other['error']:.1f}. " + text)
    return text
