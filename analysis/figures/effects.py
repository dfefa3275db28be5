"""What tuning each parameter is worth, and which parameter explains the differences between trials.

found: the content of sensitivity.json, see `kdstudy.analysis.sensitivity.findings`.
"""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import (
    COLOURS,
    NEUTRAL,
    around,
    blank,
    faint,
    label,
    rounded,
    show,
    title,
    whiskers,
    zero_line,
)
from kdstudy.analysis.number_text import show_bounds
from kdstudy.analysis.sensitivity.budget_model import CONFIDENCE
from kdstudy.analysis.sensitivity.effects import NEAR_BEST

INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"


def price_of_not_tuning(found: dict[str, Any]) -> go.Figure | None:
    """Points of accuracy lost by leaving one parameter at its default, the others tuned again, with intervals."""
    rows = sorted(found.get("prices", []), key=lambda row: row["price"])
    if not rows:
        return None
    figure = blank(100 + 62 * len(rows))
    figure.add_traces([_price(row) for row in rows])
    ends = [0.0, *(row[end] for row in rows for end in ("low", "high"))]
    figure.update_xaxes(title=f"points lost ({INTERVAL})", range=around(ends), **zero_line())
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(rows) - 0.3])
    return figure


def _price(row: dict[str, Any]) -> go.Scatter:
    price, low, high = (rounded(row[name]) for name in ("price", "low", "high"))
    shown = row["low"] > 0
    colour = COLOURS["distill"] if shown else NEUTRAL
    return go.Scatter(
        x=[price], y=[f"{title(row['parameter'])}<br>left at {show(row['default'])}"], mode="markers+text",
        text=[f"{row['price']:.1f}".replace("-", "−")], textposition="top center", cliponaxis=False,
        marker={"size": 13, "color": colour, "symbol": "circle" if shown else "circle-open",
                "line": {"width": 2, "color": colour}},
        error_x=whiskers([rounded(high - price)], [rounded(price - low)], width=7, thickness=3),
        hovertemplate=f"{title(row['parameter'])} at {show(row['default'])}: {price} points lost<br>"
                      f"{INTERVAL} {show_bounds(row)}<extra></extra>")


def effects(found: dict[str, Any]) -> go.Figure | None:
    """The share of the variance in percent that each parameter and pair explains, over the space and near its best."""
    if not found.get("effects"):
        return None
    order = sorted(found["effects"], key=lambda row: (row["other"] is None, row["share"]))
    near = {_effect_name(row): row for row in found["effects_near"]}
    figure = blank(110 + 44 * len(order), showlegend=True, barmode="group", bargap=0.25,
                   legend={"traceorder": "reversed"})
    _draw_shares(figure, f"within {NEAR_BEST:g} points of the best", [near[_effect_name(row)] for row in order],
                 NEUTRAL, "/")
    _draw_shares(figure, "over the whole ranges", order, COLOURS["distill"], "")
    figure.update_xaxes(title="variance explained, %", rangemode="tozero")
    figure.update_yaxes(showgrid=False, ticks="")
    return figure


def _draw_shares(figure: go.Figure, name: str, rows: list[dict[str, Any]], colour: str, pattern: str) -> None:
    figure.add_bar(
        orientation="h", y=[_effect_name(row) for row in rows], x=[rounded(100 * row["share"]) for row in rows],
        name=name, marker={"color": faint(colour, 0.4), "pattern": {"shape": pattern, "fgopacity": 0.5},
                           "line": {"color": colour, "width": 1}},
        error_x=whiskers([rounded(max(0, 100 * (row["high"] - row["share"]))) for row in rows],
                         [rounded(max(0, 100 * (row["share"] - row["low"]))) for row in rows],
                         width=5, thickness=2, color=NEUTRAL),
        customdata=[[rounded(100 * row["low"]), rounded(100 * row["high"])] for row in rows],
        hovertemplate="%{y}: %{x} %<br>" + INTERVAL + " %{customdata[0]} to %{customdata[1]} %<extra>" + name
                      + "</extra>")


def _effect_name(row: dict[str, Any]) -> str:
    return " × ".join(label(name) for name in (row["parameter"], row["other"]) if name)
