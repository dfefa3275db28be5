"""Several studies below each other: what distillation gained in each, and the price of not tuning."""

import html
import textwrap
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, NEUTRAL, blank, rounded, show, title, whiskers, zero_line
from kdstudy.analysis.number_text import show_bounds, show_points
from kdstudy.analysis.sensitivity.statements import has_few_trials

# First word of a configuration's name: its symbol, its name in the legend. The tuned distillation comes first.
CONFIGURATIONS = {"tuned": ("circle", "tuned"), "only": ("square-open", "only what the baseline tunes too"),
                  "default": ("diamond-open", "default point")}
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")  # per parameter, over and over
PARAMETER_COLOURS = (COLOURS["distill"], COLOURS["baseline"], COLOURS["teacher"], NEUTRAL)
LONGEST_LINE, MOST_LINES = 16, 4  # of a study's name beside the axis, in characters


def gains(names: list[str], outcomes: list[dict[str, Any]]) -> go.Figure | None:
    """The gain of every distilled row in points with its 95 % interval. outcomes: of results.json, one per name."""
    rows = [(name, row) for name, outcome in zip(names, outcomes, strict=True) for row in outcome["rows"]
            if row["arm"] == "distilled" and row["gain"]]
    if not rows:
        return None
    shown = list(dict.fromkeys(name for name, _ in rows))
    figure = blank(130 + 30 * len(rows), showlegend=True)
    for index, (kind, (symbol, legend)) in enumerate(CONFIGURATIONS.items()):
        mine = [(name, row) for name, row in rows if row["configuration"].startswith(kind)]
        if not mine:
            continue
        marker = {"symbol": symbol, "color": COLOURS["distill"], "size": 13 if kind == "tuned" else 10,
                  "line": {"width": 2, "color": COLOURS["distill"]}}
        figure.add_trace(_intervals(legend, [_place(shown, name, index, len(CONFIGURATIONS)) for name, _ in mine],
                                    [row["gain"] for _, row in mine], "mean", [name for name, _ in mine], marker))
    return _by_study(figure, shown, "test accuracy gained over the<br>tuned baseline, points")


def prices(names: list[str], known: list[dict[str, Any] | None]) -> go.Figure | None:
    """The price of leaving each parameter at its default in points. known: of sensitivity.json, one per name."""
    rows = [(name, row) for name, found in zip(names, known, strict=True) for row in (found or {}).get("prices", [])]
    if not rows:
        return None
    shown = list(dict.fromkeys(name for name, _ in rows))
    few = {name for name, found in zip(names, known, strict=True) if found and has_few_trials(found)}
    parameters = list(dict.fromkeys(row["parameter"] for _, row in rows))
    figure = blank(130 + 30 * len(rows), showlegend=True)
    for index, parameter in enumerate(parameters):
        mine = [(name, row) for name, row in rows if row["parameter"] == parameter]
        symbol = SYMBOLS[index % len(SYMBOLS)]
        marker = {"symbol": [f"{symbol}-open" if name in few else symbol for name, _ in mine], "size": 11,
                  "color": PARAMETER_COLOURS[index % len(PARAMETER_COLOURS)], "line": {"width": 2}}
        figure.add_trace(_intervals(title(parameter), [_place(shown, name, index, len(parameters)) for name, _ in mine],
                                    [row for _, row in mine], "price",
                                    [f"{name}, left at {show(row['default'])}" for name, row in mine], marker))
    return _by_study(figure, shown, "points lost (90 % interval)")


def _place(shown: list[str], name: str, index: int, count: int) -> float:
    """A mark's place on the y axis: the studies from top to bottom, the marks of one close together."""
    return round(-shown.index(name) - 0.6 * (index - (count - 1) / 2) / max(count, 2), 3)


def _intervals(name: str, places: list[float], rows: list[dict[str, Any]], middle: str, about: list[str],
               marker: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=[rounded(row[middle]) for row in rows], y=places, mode="markers", name=name, marker=marker, cliponaxis=False,
        error_x=whiskers([rounded(row["high"] - row[middle]) for row in rows],
                         [rounded(row[middle] - row["low"]) for row in rows],
                         width=5, thickness=2, color=marker["color"]),
        hovertext=[f"{html.escape(text)}, {name}: {show_points(row[middle])} points<br>{show_bounds(row)}"
                   for text, row in zip(about, rows, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>")


def _by_study(figure: go.Figure, shown: list[str], axis_title: str) -> go.Figure:
    figure.update_xaxes(title=axis_title, **zero_line())
    figure.update_yaxes(showgrid=False, ticks="", range=[-len(shown) + 0.45, 0.55], tickmode="array",
                        tickvals=[-index for index in range(len(shown))], ticktext=[_wrapped(name) for name in shown])
    return figure


def _wrapped(name: str) -> str:
    """A study's name; a long one, which may contain its folder, on several lines, the first up to its first hyphen."""
    lines = name.replace("-", "‑\n", 1).split("\n") if len(name) > LONGEST_LINE else [name]
    pieces = [piece for line in lines for piece in textwrap.wrap(line, LONGEST_LINE)]
    shown = pieces if len(pieces) <= MOST_LINES else [*pieces[:MOST_LINES - 1], "…"]
    return "<br>".join(map(html.escape, shown))
