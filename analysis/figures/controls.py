"""The gain of the distilled student over each control."""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, around, blank, rounded, whiskers, zero_line
from kdstudy.analysis.number_text import show_points


def control_intervals(outcome: dict[str, Any]) -> go.Figure | None:
    """That gain in percentage points with its interval, for each control that has one; the strongest control lowest."""
    rows = sorted((row for row in outcome.get("controls", []) if row["gain"]), key=lambda row: row["test_mean"])[::-1]
    if not rows:
        return None
    figure = blank(110 + 50 * len(rows))
    figure.add_traces([_row(row) for row in rows])
    ends = [0.0, *(row["gain"][end] for row in rows for end in ("low", "high"))]
    figure.update_xaxes(title="test accuracy of the distilled student<br>minus the control’s, points",
                        range=around(ends), **zero_line())
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(rows) - 0.3])
    return figure


def _row(row: dict[str, Any]) -> go.Scatter:
    mean, low, high = (rounded(row["gain"][name]) for name in ("mean", "low", "high"))
    name = row["control"].replace("_", " ")
    return go.Scatter(
        x=[mean], y=[name], mode="markers+text", text=[show_points(mean)], textposition="top center",
        textfont={"size": 12}, cliponaxis=False, marker={"color": COLOURS["distill"], "size": 10},
        error_x=whiskers([rounded(high - mean)], [rounded(mean - low)], width=7, thickness=2),
        hovertemplate=f"over {name} ({row['test_mean']:.2f} %): {show_points(mean)} points<br>"
                      f"interval {show_points(low)} to {show_points(high)}<extra></extra>")
