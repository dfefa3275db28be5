"""What a search chose from, side by side: its losses, or its teachers."""

import html
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.effects import INTERVAL
from kdstudy.analysis.figures.style import ACCURACY, COLOURS, NEUTRAL, around, blank, rounded, show, whiskers


def alternatives(rows: list[dict[str, Any]], kind: str) -> go.Figure | None:
    """Per alternative the best of the fitted surface with its interval, and the best trial, in percent.

    rows: see `kdstudy.analysis.sensitivity.losses.compared`. kind: their key for an alternative's name.
    """
    rows = [row | {"name": html.escape(row[kind])} for row in reversed(rows)
            if row.get("best") or row["best_seen"] is not None]
    if not rows:
        return None
    figure = blank(120 + 56 * len(rows), showlegend=True)
    fitted, seen = ([row for row in rows if row.get(name) is not None] for name in ("best", "best_seen"))
    if fitted:
        figure.add_trace(_fitted(fitted))
    if seen:
        figure.add_scatter(x=[rounded(row["best_seen"]) for row in seen], y=[row["name"] for row in seen],
                           mode="markers", name="best trial, one seed", cliponaxis=False,
                           marker={"size": 11, "symbol": "x-thin", "line": {"width": 2.5, "color": NEUTRAL}},
                           hovertemplate="%{y}: best trial %{x} %<extra></extra>")
    ends = [row["best_seen"] for row in seen] + [row["best"][end] for row in fitted for end in ("low", "high")]
    figure.update_xaxes(title=ACCURACY, range=around(ends))
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(rows) - 0.5], type="category",
                        categoryorder="array", categoryarray=[row["name"] for row in rows])
    return figure


def _fitted(rows: list[dict[str, Any]]) -> go.Scatter:
    best, low, high = ([rounded(row["best"][name]) for row in rows] for name in ("accuracy", "low", "high"))
    points = [", ".join(f"{html.escape(name)} {show(value)}" for name, value in row["best"]["parameters"].items())
              for row in rows]
    return go.Scatter(
        x=best, y=[row["name"] for row in rows], mode="markers", name=f"best of the surface, {INTERVAL}",
        cliponaxis=False, marker={"size": 13, "color": COLOURS["distill"]},
        error_x=whiskers([top - middle for top, middle in zip(high, best, strict=True)],
                         [middle - bottom for bottom, middle in zip(low, best, strict=True)], width=7, thickness=3),
        customdata=list(zip(low, high, points, strict=True)),
        hovertemplate=f"%{{y}}: %{{x}} %<br>{INTERVAL} %{{customdata[0]}} to %{{customdata[1]}} %<br>%{{customdata[2]}}"
                      "<extra></extra>")
