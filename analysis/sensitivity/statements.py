"""What the sensitivity analysis found, in sentences for the page: the headline, and when not to trust it."""

import math
from typing import Any

import pandas as pd

from kdstudy.analysis.number_text import show_value
from kdstudy.analysis.sensitivity.budget_model import CONFIDENCE
from kdstudy.analysis.sensitivity.reports import FEWEST_FULL
from kdstudy.analysis.sensitivity.rungs import PREDICTIVE_RANKS
from kdstudy.analysis.sensitivity.space import Dimension, space_of
from kdstudy.analysis.study_files import ARMS, StudyFiles

ENOUGH_PER_PARAMETER = 3  # trials at the budget; with fewer the intervals are too narrow
TRUSTED_COVERAGE = 0.80
SUPPORTED = 0.96  # of the space; where trials are near less of it, a better region may have been missed
NEGLIGIBLE = 1.0  # points; a price that is surely smaller is no reason to search on
EDGE = 0.05  # a winner within this share of a range is at its edge
# Bounds that cannot be moved; for other parameters 0 alone.
LIMITS = {"alpha": (0, 1), "warmup": (0, 1), "layer_decay": (1,)}


def statements(study: StudyFiles, found: dict[str, Any], correlations: pd.DataFrame) -> list[tuple[str, str]]:
    """The headline and what limits it, as (kind, sentence); a kind is `finding`, `note` or `warning`.

    found: of `findings.analyse`. correlations: of `rungs.rung_correlations`.
    """
    if study.config.get("smoke"):
        return [("warning", "A trial run: its few short trials say nothing about any parameter.")]
    said = [("note", found["missing"])] if "missing" in found else [
        ("finding", headline(found)), *_on_trust(study, found)]
    if "loss" in found:
        said.append(("note", f"All of this is about the trials with the loss {found['loss']} alone, for losses have "
                             "unlike parameters; how the losses compare is shown by itself."))
    return [*said, *(("note", text) for text in _edges(study, found)), *_on_rungs(study, correlations)]


def headline(found: dict[str, Any]) -> str:
    """The price of not tuning, in a sentence."""
    rows = sorted(found["prices"], key=lambda row: -row["price"])
    if not rows:
        return "The price of not tuning is unknown: the default point is not among the trials."
    failing = [f"with {_name(row)} training fails" for row in rows if row.get("fails")]
    rows = [row for row in rows if not row.get("fails")]
    said = [*failing, *(f"leaving {_name(row)} costs {_points(row['price'])} points "
            f"({_points(row['low'])} to {_points(row['high'])})" for row in rows if row["low"] > 0)]
    unsure = [f"{_name(row)} (the interval ends at {max(0.1, math.ceil(10 * row['high']) / 10):.1f})"
              for row in rows if row["low"] <= 0]
    if unsure:
        said.append(f"no cost is shown for leaving {_listed(unsure)}")
    where = [f"in the {ARMS[found['arm']]} search"] if found["arm"] == "baseline" else []
    where += [f"among trials with the loss {found['loss']}"] if "loss" in found else []
    where += [f"at epoch {found['budget']} of {found['epochs']}"] if found["budget"] < found["epochs"] else []
    where += ["with everything else tuned again"] if len(found["searched"]) > 1 else []
    text = ", ".join([*where, "; ".join(said)])
    return f"{text[0].upper()}{text[1:]}. Points of validation accuracy, {round(100 * CONFIDENCE)} % intervals."


def _points(value: float) -> str:
    """One decimal, or for a smaller number its first digit that is not 0."""
    return f"{value:.1f}" if abs(value) >= 0.1 or value == 0 else "less than 0.1" if value > 0 else f"{value:.1g}"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _name(row: dict[str, Any]) -> str:
    return f"{row['parameter'].replace('_', ' ')} at {show_value(row['default'])}"


def cautions(found: dict[str, Any], ended: bool) -> list[str]:
    """The warnings about the surface itself: why its numbers may be wrong. ended: whether the search has."""
    setting = _setting(found["arm"])
    said = [_on_coverage(found["coverage"], setting), *_on_reach(found), *_on_numbers(found, setting, ended)]
    return [text for kind, text in said if kind == "warning"]


def _setting(arm: str) -> str:
    return "search.protected" if arm == "distill" else "search.baseline_protected"


def _on_trust(study: StudyFiles, found: dict[str, Any]) -> list[tuple[str, str]]:
    """How far to trust the numbers: how far the trials have come, their coverage and number, and failures."""
    setting, said = _setting(found["arm"]), []
    if found["budget"] < found["epochs"]:
        said.append(("warning", f"Fewer than {FEWEST_FULL} {ARMS[found['arm']]} trials have reached the full "
                                f"{found['epochs']} epochs yet: everything is read off at epoch {found['budget']} and "
                                "may look different at the end."))
    said.append(_on_coverage(found["coverage"], setting))
    said += _on_reach(found)
    said += _on_numbers(found, setting, ended=study.done(found["arm"]) is not None)
    said += _on_failures(found)
    if failed := found["counts"]["failed"]:
        said.append(("note", f"{failed} failed {'trial counts' if failed == 1 else 'trials count'} only with the "
                             "reports from before the failure."))
    return said


def _on_coverage(coverage: dict[str, int], setting: str) -> tuple[str, str]:
    share = coverage["inside"] / coverage["trials"]
    text = (f"Leaving out one trial at a time, {coverage['inside']} of {coverage['trials']} lie inside the "
            f"{round(100 * CONFIDENCE)} % interval that the others predict for them ({100 * share:.0f} %)")
    if share >= TRUSTED_COVERAGE:
        return "note", (f"{text}. This checks the surface where trials are; it cannot see a region that none has "
                        "reached.")
    return "warning", (f"{text}. That is less than {100 * TRUSTED_COVERAGE:.0f} %: do not trust the intervals here; "
                       f"more protected trials ({setting}) would help.")


def _on_reach(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the surface may miss the best: it changes faster than trials are dense, or has several good regions."""
    said = []
    if found["supported_share"] < SUPPORTED:
        share = f"{100 * found['supported_share']:.0f} %"
        said.append(("warning", f"Where training does not fail, trials are near only {share} of the space, for "
                                "accuracy changes within small parts of the ranges. A better region may lie where no "
                                "trial has been: then the prices are too low, and leaving out trials cannot show it. "
                                "More trials or narrower ranges would help."))
    if found["regions"] > 1:
        said.append(("warning", f"{found['regions']} separate regions may hold the best point: which of them does is "
                                "not shown, so a price may be that of the wrong one."))
    return said


def _on_failures(found: dict[str, Any]) -> list[tuple[str, str]]:
    """How many trials failed to learn, which the surface leaves out."""
    count = found["counts"]["unlearned"]
    if not count:
        return []
    of = f"{count} of {count + found['counts']['trials']} trials"
    return [("note", f"{of} failed to learn: at chance, or diverged. They are not points of the surface. No best "
                     "point, curve or map reaches where training fails, and averages over the ranges take chance "
                     "there.")]


def has_few_trials(found: dict[str, Any]) -> bool:
    """Whether a search has so few trials of its own at the budget that its intervals are too narrow."""
    counts = found.get("counts")
    return counts is not None and counts["full"] - counts["baseline"] < ENOUGH_PER_PARAMETER * len(found["searched"])


def _on_numbers(found: dict[str, Any], setting: str, ended: bool) -> list[tuple[str, str]]:
    """A warning where a search has too few trials at the budget, or too few protected ones among them."""
    counts, parameters = found["counts"], len(found["searched"])
    own, wanted = counts["full"] - counts["baseline"], ENOUGH_PER_PARAMETER * parameters
    least = wanted - 1 if counts["protected"] >= FEWEST_FULL else max(8, wanted - 1)
    least *= len(found["losses"]) if "loss" in found else 1  # among which the protected trials are divided
    remedy = f"set {setting} = {least} or more" if ended else "the search is still running, so wait for more"
    if counts["protected"] < FEWEST_FULL:
        return [("warning", f"From search data only: {counts['protected'] or 'no'} protected "
                            f"{'trial' if counts['protected'] == 1 else 'trials'} at epoch {found['budget']}. A search "
                            f"tries points where it expects to win, so the rest of the space is a guess; {remedy}.")]
    if has_few_trials(found):
        searched = "1 searched parameter" if parameters == 1 else f"{parameters} searched parameters"
        return [("warning", f"Only {own} {ARMS[found['arm']]} trials reached epoch {found['budget']}, for {searched}: "
                            f"with fewer than {wanted} the intervals are narrower than they should be; {remedy}.")]
    return []


def _edges(study: StudyFiles, found: dict[str, Any]) -> list[str]:
    """Which winners lie at the edge of a searched range, and what to do about it.

    Nothing is advised about a parameter of which it is known that it hardly matters: its price cannot be above
    NEGLIGIBLE, and its default, which the price is about, is not at that edge itself."""
    said = []
    prices = {(found["arm"], row["parameter"]): row for row in found.get("prices", [])}
    for arm, title in ARMS.items():
        chosen = study.choice(arm) or {}
        for name, dimension in space_of(study, arm).items():
            value = chosen.get("parameters", {}).get(name)
            if value is None or dimension.kind == "choice":
                continue
            price = prices.get((arm, name))
            at_default = price is not None and _edge_of(dimension, price["default"]) == _edge_of(dimension, value)
            if price is None or price["high"] >= NEGLIGIBLE or at_default:
                said += _edge(title, name, dimension, value, price)
    return said


def _edge_of(dimension: Dimension, value: float) -> str | None:
    """The edge of a range that a value is at."""
    place = float(dimension.unit([value])[0, 0])
    return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else None


def _edge(arm: str, name: str, dimension: Dimension, value: float, price: dict[str, Any] | None) -> list[str]:
    word = _edge_of(dimension, value)
    if word is None:
        return []
    low, high = dimension.values
    bound, direction = (high, "raise") if word == "upper" else (low, "lower")
    if bound in LIMITS.get(name, (0,)):
        meaning = {0: ", the labels alone", 1: ", the teacher's predictions alone"}[bound] if name == "alpha" else ""
        return [f"The {arm}'s winner has {name} {show_value(value)}, next to {bound:g}{meaning}: there is nothing "
                "beyond that bound."]
    where = (f"The {arm}'s winner has {name} {show_value(value)}, at the {word} edge of [{show_value(low)}, "
             f"{show_value(high)}]")
    if price and price["low"] <= 0:
        return [f"{where}. No cost of leaving {name} at {show_value(price['default'])} is shown, so this may be "
                f"chance; if not, better values may lie beyond the {word} bound of search.{name}."]
    return [f"{where}: better values may lie beyond; {direction} the {word} bound of search.{name} and run again."]


def _on_rungs(study: StudyFiles, correlations: pd.DataFrame) -> list[tuple[str, str]]:
    """A warning per arm about the last rung that does not predict the end: the grace period should reach beyond it."""
    said = []
    last = correlations[correlations["later"] == study.description.get("epochs")]
    for arm, rows in last.groupby("arm", sort=False):
        poor = rows[(rows["correlation"] < PREDICTIVE_RANKS) & (rows["trials"] > FEWEST_FULL + 1)]
        if len(poor):
            row, better = poor.iloc[-1], rows[rows["rung"] > poor.iloc[-1]["rung"]]
            remedy = (f"a longer grace period is safer (search.grace_period = {better.iloc[0]['rung']})" if len(better)
                      else "letting all trials run to the end is safer (search.early_stopping = false)")
            kind = "protected trials" if row["protected"] else "trials that passed it"
            said.append(("warning", f"In the {ARMS[arm]} search, rung {row['rung']} does not predict the end: rank "
                                    f"correlation {row['correlation']:+.2f} over {row['trials']} {kind}. Trials that "
                                    f"would have won may have been stopped; {remedy}."))
    return said
