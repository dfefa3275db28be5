"""The gain of each row of the results table over the tuned baseline."""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, around, blank, rounded, whiskers, zero_line
from kdstudy.analysis.number_text import show_points


def gain_intervals(outcome: dict[str, Any]) -> go.Figure | None:
    """The gain over the tuned baseline in percentage points with its 95 % interval, for each row that has one."""
    rows = [row for row in outcome["rows"] if row.get("gain")]
    if not rows:
        return None
    figure = blank(110 + 58 * len(rows))
    figure.add_traces([_row(row) for row in rows])
    ends = [0.0, *(row["gain"][end] for row in rows for end in ("low", "high"))]
    figure.update_xaxes(title="test accuracy gained over the tuned<br>baseline, points (95 % interval)",
                        range=around(ends), **zero_line())
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(rows) - 0.3])
    return figure


def _row(row: dict[str, Any]) -> go.Scatter:
    mean, low, high = (rounded(row["gain"][name]) for name in ("mean", "low", "high"))
    main = row["primary"]
    colour = COLOURS["distill" if row["arm"] == "distilled" else "baseline"]
    return go.Scatter(
        x=[mean], y=[_label(row, main)], mode="markers+text", text=[show_points(mean)], textposition="top center",
        textfont={"size": 15 if main else 12}, cliponaxis=False,
        marker={"color": colour, "size": 14 if main else 10, "symbol": "circle" if main else "circle-open",
                "line": {"width": 2, "color": colour}},
        error_x=whiskers([rounded(high - mean)], [rounded(mean - low)], width=7, thickness=4 if main else 2),
        hovertemplate=f"{row['arm']}, {row['configuration']}: {show_points(mean)} points<br>"
                      f"95 % interval {show_points(low)} to {show_points(high)}<extra></extra>")


def _label(row: dict[str, Any], main: bool) -> str:
    label = f"{row['arm']},<br>{row['configuration']}"
    return f"<b>{label}</b>" if main else label
