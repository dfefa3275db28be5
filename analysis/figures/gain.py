"""The gain of each row of the results table over the tuned baseline."""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.intervals import interval, interval_figure
from kdstudy.analysis.figures.style import COLOURS


def gain_intervals(outcome: dict[str, Any]) -> go.Figure | None:
    """The gain over the tuned baseline in percentage points with its 95 % interval, for each row that has one."""
    rows = [row for row in outcome["rows"] if row.get("gain")]
    if not rows:
        return None
    return interval_figure([row["gain"] for row in rows], [_row(row) for row in rows],
                           "test accuracy gained over the tuned<br>baseline, points (95 % interval)", each=58)


def _row(row: dict[str, Any]) -> go.Scatter:
    main, colour = row["primary"], COLOURS["distill" if row["arm"] == "distilled" else "baseline"]
    marker = {"color": colour, "size": 14 if main else 10, "symbol": "circle" if main else "circle-open",
              "line": {"width": 2, "color": colour}}
    return interval(row["gain"], _label(row, main), (f"{row['arm']}, {row['configuration']}", "95 % interval"), marker,
                    text_size=15 if main else 12, thickness=4 if main else 2)


def _label(row: dict[str, Any], main: bool) -> str:
    label = f"{row['arm']},<br>{row['configuration']}"
    return f"<b>{label}</b>" if main else label
