"""Several studies on one page: what learned from what, what it gained, and what tuning was worth in each."""

import html
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plotly.graph_objects as go

from kdstudy.analysis import report, tables
from kdstudy.analysis.look import COLOURS, NEUTRAL, TITLES, blank, rounded, show, signed
from kdstudy.analysis.results import read_json
from kdstudy.analysis.sections import Exhibit
from kdstudy.analysis.sensitivity import has_few_trials

# How a configuration's name begins, and its symbol; of each study the tuned distillation first.
SYMBOLS = {"tuned": "circle", "only": "square-open", "default": "diamond-open"}
TITLES_OF = {"tuned": "tuned", "only": "only what the baseline tunes too", "default": "default point"}


def build(folders: list[Path], out: Path) -> None:
    """Write the page. The studies' own results must have been built: `report.build`."""
    outcomes = [read_json(folder / "results" / "results.json") for folder in folders]
    known = [read_json(folder / "results" / "sensitivity.json") for folder in folders]
    names = distinct_names(outcomes, folders)
    exhibits = [
        Exhibit("gains", "What distillation gained",
                "Test accuracy over each study’s own tuned baseline, with 95 % intervals. Filled: temperature, α and "
                "the rest tuned; open: only what the baseline tunes too, and the default point. Each interval speaks "
                "of its own study; with many studies side by side, some exclude zero by chance.",
                "No study has a confirmed gain yet.", gains(names, outcomes)),
        Exhibit("prices", "The price of not tuning",
                "Points of validation accuracy lost by leaving one parameter at its default while the others are tuned "
                "again, with 90 % intervals. A parameter whose interval lies above zero in every study is worth tuning "
                "in the next one. Open marks: so few trials that the intervals are narrower than they should be.",
                "No study has trials enough to say.", prices(names, known)),
    ]
    links = "".join(f'<li><a href="{html.escape(_relative(folder, out), quote=True)}">{html.escape(name)}</a>: '
                    f"{html.escape(outcome['verdict'])}</li>"
                    for name, folder, outcome in zip(names, folders, outcomes, strict=True))
    body = [
        "<header><p class=kind>Hyperparameter studies of knowledge distillation</p>"
        f"<h1>{len(folders)} studies side by side</h1></header>",
        f"<section class=verdict><h2>Verdicts</h2><ul>{links}</ul></section>",
        f"<section><h2>Takeaways</h2>{_table(outcomes)}</section>", *report.sections_of(exhibits),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.document("Does distillation help? Several studies", body, exhibits), encoding="utf-8")


def distinct_names(outcomes: list[dict[str, Any]], folders: list[Path]) -> list[str]:
    """The studies' names; with their folders where several have the same."""
    counts = Counter(outcome["study"] for outcome in outcomes)
    return [f"{outcome['study']} ({folder})" if counts[outcome["study"]] > 1 else outcome["study"]
            for outcome, folder in zip(outcomes, folders, strict=True)]


def _relative(folder: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(folder / "results" / "report.html", out.parent)).as_posix())


def _table(outcomes: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in tables.TAKEAWAYS)
    rows = "".join(f"<tr>{_cells(outcome)}</tr>" for outcome in outcomes)
    return ("<div class=scroll><table class='results takeaways'>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")


def _cells(outcome: dict[str, Any]) -> str:
    labelled = zip(tables.TAKEAWAYS, tables.takeaway(outcome), strict=True)
    return "".join(f'<td{" class=number" if index > 2 else ""} data-label="{html.escape(title)}">'
                   f"{html.escape(text)}</td>" for index, (title, text) in enumerate(labelled))


def gains(names: list[str], outcomes: list[dict[str, Any]]) -> go.Figure | None:
    """The gain of every distilled row in points, the studies below each other."""
    rows = [(name, row) for name, outcome in zip(names, outcomes, strict=True) for row in outcome["rows"]
            if row["arm"] == "distilled" and row["gain"]]
    if not rows:
        return None
    shown = list(dict.fromkeys(name for name, _ in rows))
    figure = blank(130 + 30 * len(rows), showlegend=True)
    for kind, symbol in SYMBOLS.items():
        mine = [(name, row) for name, row in rows if row["configuration"].startswith(kind)]
        if not mine:
            continue
        places = [_place(shown, name, list(SYMBOLS).index(kind), len(SYMBOLS)) for name, _ in mine]
        marker = {"symbol": symbol, "color": COLOURS["distill"], "size": 13 if kind == "tuned" else 10,
                  "line": {"width": 2, "color": COLOURS["distill"]}}
        figure.add_trace(_intervals(TITLES_OF[kind], places, [row["gain"] for _, row in mine], "mean",
                                    [name for name, _ in mine], marker))
    return _by_study(figure, shown, "test accuracy gained over the<br>tuned baseline, points")


def prices(names: list[str], known: list[dict[str, Any]]) -> go.Figure | None:
    """The price of leaving each parameter at its default in points, the studies below each other."""
    rows = [(name, row) for name, found in zip(names, known, strict=True) for row in (found or {}).get("prices", [])]
    if not rows:
        return None
    shown = list(dict.fromkeys(name for name, _ in rows))
    few = {name: bool(found) and has_few_trials(found) for name, found in zip(names, known, strict=True)}
    parameters = list(dict.fromkeys(row["parameter"] for _, row in rows))
    figure = blank(130 + 30 * len(rows), showlegend=True)
    symbols = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
    colours = (COLOURS["distill"], COLOURS["baseline"], COLOURS["teacher"], NEUTRAL)
    for index, parameter in enumerate(parameters):
        mine = [(name, row) for name, row in rows if row["parameter"] == parameter]
        figure.add_trace(_intervals(
            TITLES.get(parameter, parameter.replace("_", " ")),
            [_place(shown, name, index, len(parameters)) for name, _ in mine], [row for _, row in mine], "price",
            [f"{name}, left at {show(row['default'])}" for name, row in mine],
            {"symbol": [symbols[index % len(symbols)] + ("-open" if few[name] else "") for name, _ in mine], "size": 11,
             "color": colours[index % len(colours)], "line": {"width": 2}}))
    return _by_study(figure, shown, "points lost (90 % interval)")


def _place(shown: list[str], name: str, index: int, count: int) -> float:
    """Where a mark stands on the y axis: the studies from top to bottom, the marks of one close together."""
    return round(-shown.index(name) - 0.6 * (index - (count - 1) / 2) / max(count, 2), 3)


def _intervals(title: str, places: list[float], rows: list[dict[str, Any]], middle: str, about: list[str],
               marker: dict[str, Any]) -> go.Scatter:
    values = [rounded(row[middle]) for row in rows]
    return go.Scatter(
        x=values, y=places, mode="markers", name=title, marker=marker, cliponaxis=False,
        error_x={"type": "data", "symmetric": False, "width": 5, "thickness": 2, "color": marker["color"],
                 "array": [rounded(row["high"] - row[middle]) for row in rows],
                 "arrayminus": [rounded(row[middle] - row["low"]) for row in rows]},
        hovertext=[f"{html.escape(text)}, {title}: {signed(row[middle])} points<br>{signed(row['low'])} to "
                   f"{signed(row['high'])}" for text, row in zip(about, rows, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>")


def _by_study(figure: go.Figure, shown: list[str], title: str) -> go.Figure:
    figure.update_xaxes(title=title, zeroline=True, zerolinewidth=2.5, zerolinecolor=NEUTRAL)
    figure.update_yaxes(showgrid=False, ticks="", range=[-len(shown) + 0.45, 0.55], tickmode="array",
                        tickvals=[-index for index in range(len(shown))],
                        ticktext=[html.escape(name).replace("-", "‑<br>", 1) if len(name) > 16 else html.escape(name)
                                  for name in shown])
    return figure
