"""The cards under the verdict: one number each, and what it means."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from kdstudy.analysis.figures.style import labels
from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.number_text import show_bounds, show_p, show_points
from kdstudy.analysis.predictions import NOTEWORTHY_CALIBRATION, Calibration
from kdstudy.analysis.study_analysis import StudyAnalysis


@dataclass(frozen=True)
class Card:
    title: str
    figure: str
    text: str


def cards_html(analysis: StudyAnalysis) -> str:
    shown = "".join(f"<div class=card><h3>{html.escape(card.title)}</h3><p class=figure>{html.escape(card.figure)}</p>"
                    f"<p>{html.escape(card.text)}</p></div>"
                    for card in cards(analysis.outcome, analysis.calibration))
    return f"<div class=cards>{shown}</div>" if shown else ""


def cards(outcome: dict[str, Any], measured: Calibration | None) -> list[Card]:
    """What a careful colleague would add to the verdict; none while there is no gain with an interval.

    None for a trial run either, from which nothing can be concluded.
    """
    gain, evidence = outcome["gain"], outcome["evidence"]
    if gain is None or outcome["smoke"]:
        return []
    found = [_gain_card(gain), _only_card(evidence["only"]), _luck_card(evidence["selected"]["distilled"]),
             _power_card(evidence["seeds"], gain), _confidence_card(measured), _checkpoint_card(evidence["exported"])]
    return [card for card in found if card]


def _gain_card(gain: dict[str, Any]) -> Card:
    teachers, new = (f"{gain['teachers']} teachers, ", "teachers, ") if "teachers" in gain else ("", "")
    return Card("Gain over the tuned baseline", f"{show_points(gain['mean'])} points",
                f"95 % interval {show_bounds(gain)} ({_p(gain['p'])}) for the average over new {new}training seeds and "
                f"new test images, from {teachers}{gain['seeds']} seeds, the same for both arms, and "
                f"{gain['images']:,} images.")


def _only_card(only: dict[str, Any] | None) -> Card | None:
    if only is None:
        return None
    rest, own = only["rest"], only["gain"]
    unsure = "" if rest["p"] < SIGNIFICANT else ", which includes zero"
    kept = "the loss and its parameters" if "loss" in only["searched"] else "T and α"
    kept = f"the teacher, {kept}" if "teacher" in only["searched"] else kept
    simultaneous = "Simultaneous " if rest["comparisons"] > 1 else ""
    return Card(f"What tuning {labels(only['searched'])} adds", f"{show_points(rest['mean'])} points",
                f"{simultaneous}95 % interval {show_bounds(rest)}{unsure}. With {only['configuration']}, {kept} at "
                f"their defaults, distillation gains {show_points(own['mean'])} ({show_bounds(own)}) over the tuned "
                "baseline.")


def _luck_card(selected: dict[str, Any] | None) -> Card | None:
    if selected is None:
        return None
    chosen = ("then chosen among the finalists, which ran on other seeds too" if selected["finalists"]
              else f"the best of {selected['full']} at the full budget")
    return Card("The winner’s luck", f"{selected['selected']:.1f} → {selected['retrained']:.1f} %",
                f"Validation accuracy in the search ({chosen}, of {selected['trials']} trials), and the mean of the "
                f"same configuration on {selected['seeds']} fresh seeds. Quote its test accuracy, in the table.")


def _power_card(seeds: dict[str, Any] | None, gain: dict[str, Any]) -> Card | None:
    if seeds is None or seeds["smallest"] == 0:  # without any variation there is nothing to estimate power from
        return None
    if (smallest := seeds["smallest"]) is None:
        return Card("The smallest gain it could detect", "none", f"With the spread seen here, {seeds['seeds']} seeds "
                    "would find no gain at all in four of five studies: more seeds or more test images are needed.")
    unanswered = [(float(gain), count) for gain, count in seeds["needed"].items() if float(gain) < smallest]
    text = f"With the spread seen here, {seeds['seeds']} seeds find a true gain of that size in four of five studies"
    if unanswered:
        size, count = unanswered[-1]
        points = f"{size:g} {'point' if size == 1 else 'points'}"
        text += (f"; {points} would need {count} seeds{_how_to_run(count)}" if count
                 else f"; for {points}, only more test images would help")
    if gain["p"] < SIGNIFICANT and abs(gain["mean"]) < smallest:
        what = "gain" if gain["mean"] > 0 else "loss"
        text += (f". This study found {abs(gain['mean']):.1f} all the same: a {what} found below the size that is "
                 "usually detected is probably exaggerated")
    return Card("The smallest gain it could detect", f"{smallest:.1f} points", f"{text}.")


def _how_to_run(seeds: int) -> str:
    """How to confirm on so many seeds: in this study, and in a new one."""
    plan = sorted({min(seeds, max(3, math.ceil(seeds / parts))) for parts in (4, 2, 1)})
    planned = f"'confirm.seeds=[{','.join(map(str, plan))}]'" if len(plan) > 1 else f"confirm.seeds={seeds}"
    return (f" (--set confirm.seeds={seeds} adds them to this study; unless they were planned before its first look, "
            f"its interval is then wider. --set seed=1 --set {planned} plans them in a new one, with its own search "
            "and seeds)")


def _confidence_card(measured: Calibration | None) -> Card | None:
    """Only where distillation changes how far confidence can be trusted."""
    if measured is None:
        return None
    errors = dict(zip(measured.errors["arm"], measured.errors["error"], strict=True))
    if not {"baseline", "distilled"} <= set(errors):
        return None
    before, after = errors["baseline"], errors["distilled"]
    if abs(after - before) < NOTEWORTHY_CALIBRATION:
        return None
    worse = after > before
    return Card(f"Its confidence is {'less' if worse else 'more'} reliable", f"{before:.1f} → {after:.1f} points",
                "Expected calibration error of the tuned baseline and of the distilled student. If you use its "
                "probabilities, not only its predictions, "
                f"{'calibrate the student again' if worse else 'that is a gain too'}.")


def _checkpoint_card(exported: dict[str, Any] | None) -> Card | None:
    if exported is None:
        return None
    return Card("The exported weights", f"{exported['accuracy']:.1f} against {exported['baseline']:.1f} %",
                f"The exported student and the tuned baseline of the same seed ({exported['seed']}): of "
                f"{exported['images']:,} test images {exported['only_student']} are right in the first alone and "
                f"{exported['only_baseline']} in the second alone (exact McNemar test, {_p(exported['p'])}). This "
                "compares two checkpoints, not distillation with the baseline in general.")


def _p(value: float) -> str:
    shown = show_p(value)
    return f"two-sided p {shown if shown.startswith('<') else f'= {shown}'}"
