"""The gain with each of several teachers."""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.intervals import interval, interval_figure
from kdstudy.analysis.figures.style import COLOURS


def teacher_intervals(outcome: dict[str, Any]) -> go.Figure | None:
    """The gain over the tuned baseline in percentage points, for each teacher and over all; the best teacher on top."""
    rows = [row for row in outcome.get("teachers", []) if row["gain"]]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row["teacher_accuracy"] or 0.0)
    gains = [outcome["gain"], *(row["gain"] for row in rows)]
    marker = {"color": COLOURS["distill"], "size": 14}
    whole = interval(outcome["gain"], "<b>over all</b>", (f"over all {len(rows)} teachers", "95 % interval"), marker,
                     text_size=15, thickness=4)
    return interval_figure(gains, [whole, *map(_row, rows)],
                           "test accuracy gained over the tuned<br>baseline, points (95 % interval)", each=52)


def _row(row: dict[str, Any]) -> go.Scatter:
    accuracy = "" if row["teacher_accuracy"] is None else f"<br>{row['teacher_accuracy']:.2f} %"
    marker = {"color": COLOURS["distill"], "size": 10, "symbol": "circle-open",
              "line": {"width": 2, "color": COLOURS["distill"]}}
    return interval(row["gain"], f"teacher {row['teacher']}{accuracy}",
                    (f"students of teacher {row['teacher']}", "95 % interval"), marker)
