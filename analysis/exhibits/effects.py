"""What the hyperparameters do: the sensitivity analysis of the search."""

from typing import Any

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures import effect_curves as curves_figure
from kdstudy.analysis.figures import effect_map as map_figure
from kdstudy.analysis.figures import effects as effects_figures
from kdstudy.analysis.figures.style import label, labels, show
from kdstudy.analysis.number_text import show_interval, show_value
from kdstudy.analysis.sensitivity.effects import NEAR_BEST
from kdstudy.analysis.sensitivity.statements import statements
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.study_files import ARMS


def price(name: str, analysis: StudyAnalysis) -> Exhibit:
    """The prices of not tuning; above them the headline and the warnings of the whole sensitivity analysis."""
    known = analysis.sensitivity
    notes = (*statements(analysis.study, known, analysis.rung_correlations), *_retrained(analysis.outcome, known))
    return Exhibit(
        name, "The price of not tuning",
        f"Points of validation accuracy that the {ARMS[known['arm']]} loses {_at(known)} where {_left(known)}. Where "
        "the interval is above zero (filled), tuning that parameter pays; where it includes zero (open), the search "
        f"does not show that it does. {_basis(known)}",
        _missing(known), effects_figures.price_of_not_tuning(known), notes=notes, nav="Price of not tuning")


def effect_curves(name: str, analysis: StudyAnalysis) -> Exhibit:
    study, known = analysis.study, analysis.sensitivity
    return Exhibit(
        name, "What each parameter does",
        f"Solid: the best that any setting of the others reaches {_at(known)}. Dashed: the average over their ranges. "
        "Bands are 90 % intervals of the fitted surface; where a solid line is flat within its band, no effect of the "
        "parameter is shown. Curves end where no trial is near. Marks are real trials, whose accuracies also include "
        "their seed’s luck.",
        _missing(known), curves_figure.effect_curves(study, known),
        curves_figure.effect_curves(study, known, columns=1), nav="Effects")


def best_map(name: str, analysis: StudyAnalysis) -> Exhibit:
    known = analysis.sensitivity
    first, second = map(label, known.get("map_of") or ("temperature", "alpha"))
    return Exhibit(
        name, f"{first} and {second} together, the rest at its best",
        "Fitted, with the uncertainty of the curves above; brighter is better. Where the bright region is wide, the "
        "exact point hardly matters; where it runs diagonally, the two must be tuned together; grey is where no trial "
        "is near, or training fails. "
        f"{_best(known)}",
        _missing(known) or "Fewer than two parameters were searched, so there is no map.",
        map_figure.best_map(analysis.study, known), nav="Map")


def effects(name: str, analysis: StudyAnalysis) -> Exhibit:
    known = analysis.sensitivity
    heading = "Which parameter explains the differences"
    return Exhibit(
        name, f"{heading}?" if _missing(known) else f"{heading}, over {_ranges(known)}",
        "Shares of the variance of accuracy over the whole ranges, and over the part of the space within "
        f"{NEAR_BEST:g} points of the best ({_near_share(known)}), where it matters. A parameter that dominates the "
        "whole space may not matter near the best. Shares depend on the ranges much more than the prices above do.",
        _missing(known), effects_figures.effects(known))


def _missing(known: dict[str, Any]) -> str:
    return known.get("missing", "")


def _at(known: dict[str, Any]) -> str:
    return f"at epoch {known['budget']}" if "budget" in known else ""


def _left(known: dict[str, Any]) -> str:
    if len(known["searched"]) == 1:
        return "the parameter stays at its default"
    return "one parameter stays at its default and all others are tuned again"


def _basis(known: dict[str, Any]) -> str:
    counts = known.get("counts")
    if counts is None:
        return ""
    where = "at the full budget" if known["budget"] == known["epochs"] else "that far"
    own = f"{counts['protected']} of the {ARMS[known['arm']]}’s protected"
    return f"From {counts['reports']} reports of {counts['trials']} trials, {counts['full']} of them {where} ({own})."


def _retrained(outcome: dict[str, Any], known: dict[str, Any]) -> list[tuple[str, str]]:
    """Where retrained runs measure the same as the search estimates: which of the two to believe."""
    only = (outcome["evidence"] or {}).get("only")
    if only is None or "missing" in known:
        return []
    shared = only["configuration"].removeprefix("only ").removesuffix(" tuned")
    return [("note", "These prices are the search’s own estimates. The retrained runs count for more: there, tuning "
                     f"{labels(only['searched'])} beyond {shared} is worth {show_interval(only['rest'])}, of test "
                     "accuracy.")]


def _best(known: dict[str, Any]) -> str:
    if "best" not in known:
        return ""
    best = known["best"]
    text = f"Where trials are, the surface is best at {show_point(best)}: {show_estimate(best)}"
    if known["winner"]:
        text += f". Of the winner, {show_point(known['winner'])}, it predicts {show_estimate(known['winner'])}"
    return f"{text}; a winner that measured more was partly lucky with its seed."


def show_estimate(place: dict[str, Any]) -> str:
    """94.1 % (91.1 to 96.8): the accuracy that a surface predicts at a point, with its interval."""
    return f"{place['accuracy']:.1f} % ({place['low']:.1f} to {place['high']:.1f})"


def show_point(place: dict[str, Any]) -> str:
    """T 4, α 0.917, lr 0.00173."""
    return ", ".join(f"{label(name)} {show_value(value)}" for name, value in place["parameters"].items())


def _near_share(known: dict[str, Any]) -> str:
    return f"{100 * known['near_share']:.0f} % of it" if "near_share" in known else "a part of it"


def _ranges(known: dict[str, Any]) -> str:
    """The searched ranges, on which every share of the variance depends: T 1 to 16 (log), α 0 to 1."""
    texts = []
    for name, dimension in known["searched"].items():
        (kind, values), = dimension.items()
        shown = [show(value) for value in values]
        span = f"in {{{', '.join(shown)}}}" if kind == "choice" else f"{shown[0]} to {shown[1]}"
        texts.append(f"{label(name)} {span}{' (log)' if kind == 'log' else ''}")
    return ", ".join(texts)
