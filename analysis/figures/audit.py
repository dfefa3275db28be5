"""The gain by protocol, from the usual one to the study's own, and what each step changes: a waterfall."""

from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.intervals import interval
from kdstudy.analysis.figures.style import COLOURS, NEUTRAL, around, blank, faint, rounded, whiskers, zero_line
from kdstudy.analysis.number_text import show_bounds, show_points

# What a step changes, in at most two short lines that a number follows: there is little room on a phone.
CHANGES = {"equal batch": "batch size<br>", "last epoch": "choice of<br>epoch ", "tuned baseline":
           "baseline’s<br>tuning ", "both tuned": "distillation’s<br>tuning "}
ROW = 44  # pixels


def audit_waterfall(outcome: dict[str, Any]) -> go.Figure | None:
    """The gain that each protocol measures, in points, with the steps between; None while there is no audit."""
    if (audit := outcome.get("audit")) is None:
        return None
    rows, ends, before = [], [0.0], 0.0
    for place, row in enumerate(audit["protocols"], 1):
        if row["change"]:
            rows.append(_change(row["protocol"], row["change"], before))
            ends += [before + row["change"][end] for end in ("low", "high")]
        rows.append(_gain(place, row))
        ends += [row["gain"][end] for end in ("low", "high")]
        before = row["gain"]["mean"]
    figure = blank(110 + ROW * len(rows))
    figure.add_traces(rows)
    figure.update_xaxes(title="gain, points<br>(95 % interval)", range=around(ends), **zero_line())
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[len(rows) - 0.4, -0.7])  # the first on top
    return figure


def _gain(place: int, row: dict[str, Any]) -> go.Scatter:
    last = place == 5
    name = f"{place} {row['protocol'].replace(' ', '<br>', 1)}"
    return interval(row["gain"], f"<b>{name}</b>", (row["protocol"], f"95 % interval over {row['gain']['over']}"),
                    {"color": COLOURS["distill"], "size": 14 if last else 11}, text_size=14 if last else 12,
                    thickness=4 if last else 2)


def _change(protocol: str, change: dict[str, Any], before: float) -> go.Bar:
    """A bar from the gain before the step to the one after it; its whiskers are those of the step alone."""
    mean, low, high = (rounded(change[name]) for name in ("mean", "low", "high"))
    return go.Bar(
        orientation="h", base=[rounded(before)], x=[mean], width=0.5,
        y=[f"{CHANGES[protocol]}{show_points(change['mean'])}"],
        marker={"color": faint(NEUTRAL, 0.55), "line": {"color": NEUTRAL, "width": 1}},
        error_x=whiskers([rounded(high - mean)], [rounded(mean - low)], width=5, thickness=1.5, color=NEUTRAL),
        hovertemplate=f"{protocol}: changes the gain by {show_points(change['mean'])} points<br>95 % interval over "
                      f"{change['over']} {show_bounds(change)}<extra></extra>")
