"""The gain of the distilled student over each control."""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.intervals import interval, interval_figure
from kdstudy.analysis.figures.style import COLOURS


def control_intervals(outcome: dict[str, Any]) -> go.Figure | None:
    """That gain in percentage points with its interval, for each control that has one; the strongest control lowest."""
    rows = sorted((row for row in outcome.get("controls", []) if row["gain"]), key=lambda row: row["test_mean"])[::-1]
    if not rows:
        return None
    return interval_figure([row["gain"] for row in rows], [_row(row) for row in rows],
                           "test accuracy of the distilled student<br>minus the control’s, points", each=50)


def _row(row: dict[str, Any]) -> go.Scatter:
    name = row["control"].replace("_", " ")
    return interval(row["gain"], name, (f"over {name} ({row['test_mean']:.2f} %)", "interval"),
                    {"color": COLOURS["distill"], "size": 10})
