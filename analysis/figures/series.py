"""A series of studies along one setting: the gain, and the accuracies that it is the difference of."""

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, NEUTRAL, around, blank, rounded, show, whiskers, zero_line
from kdstudy.analysis.number_text import counted, show_bounds, show_points

HEIGHT = 340
SIDE_BY_SIDE = 0.012  # of the axis: how far marks of one amount lie apart, so that their whiskers can be told apart
ARMS = {"teacher": ("teacher", "diamond-open", "dot"), "distilled": ("distill", "circle", "solid"),
        "baseline": ("baseline", "square", "solid")}  # colour, symbol and line of each


def gains(content: dict[str, Any]) -> go.Figure | None:
    """The gain at each amount in points with its 95 % interval, and the line through them. content: of series.json."""
    members = [member for member in content["members"] if member["gain"]]
    if not members:
        return None
    figure, colour = blank(HEIGHT), COLOURS["distill"]
    shown = [member["gain"] for member in members]
    figure.add_trace(go.Scatter(
        x=[member["amount"] for member in members], y=[rounded(gain["mean"]) for gain in shown], mode="markers",
        marker={"color": colour, "size": 12}, cliponaxis=False,
        error_y=whiskers([rounded(gain["high"] - gain["mean"]) for gain in shown],
                         [rounded(gain["mean"] - gain["low"]) for gain in shown], width=6, thickness=2.5, color=colour),
        hovertext=[_hover(content, member) for member in members], hovertemplate="%{hovertext}<extra></extra>"))
    if content["slope"] and not content["smoke"]:
        figure.add_trace(_line(content["slope"], [member["amount"] for member in members]))
    ends = [0.0, *(gain[end] for gain in shown for end in ("low", "high"))]
    figure.update_yaxes(title="test accuracy gained, points", range=around(ends), **zero_line())
    return _along(figure, content, members)


def _hover(content: dict[str, Any], member: dict[str, Any]) -> str:
    gain = member["gain"]
    return (f"{counted(member['amount'], content['unit'])}: {show_points(gain['mean'])} points<br>95 % interval "
            f"{show_bounds(gain)}<br>baseline {member['baseline']['test_mean']:.2f} %, distilled "
            f"{member['distilled']['test_mean']:.2f} %<br>{gain['seeds']} seeds, {gain['images']:,} test images")


def _line(slope: dict[str, Any], amounts: list[float]) -> go.Scatter:
    places = np.log2(amounts)
    ends = [min(amounts), max(amounts)]
    values = [slope["level"] + slope["mean"] * (math.log2(end) - float(places.mean())) for end in ends]
    return go.Scatter(x=ends, y=list(map(rounded, values)), mode="lines", hoverinfo="skip",
                      line={"color": NEUTRAL, "dash": "dot", "width": 2})


def accuracies(content: dict[str, Any]) -> go.Figure | None:
    """The test accuracy at each amount, in percent, of the baseline, the distilled student and the teacher."""
    members = [member for member in content["members"] if member["distilled"]]
    if not members:
        return None
    figure = blank(HEIGHT, showlegend=True)
    spread = math.log10(members[-1]["amount"] / members[0]["amount"]) or 1.0
    for place, (arm, (colour, symbol, dash)) in enumerate(ARMS.items()):
        known = [(member["amount"], member[arm]) for member in members if member[arm]]
        aside = 10 ** (SIDE_BY_SIDE * spread * (place - 1))
        figure.add_trace(go.Scatter(
            x=[float(f"{amount * aside:.6g}") for amount, _ in known],
            y=[rounded(row["test_mean"]) for _, row in known],
            mode="lines+markers", name=arm, cliponaxis=False,
            line={"color": COLOURS[colour], "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 10, "color": COLOURS[colour]},
            error_y=_spread([row for _, row in known], COLOURS[colour]),
            hovertext=[f"{counted(amount, content['unit'])}: {arm} {row['test_mean']:.2f} %" for amount, row in known],
            hovertemplate="%{hovertext}<extra></extra>"))
    figure.update_yaxes(title="test accuracy, %")
    return _along(figure, content, members)


def _spread(rows: list[dict[str, Any]], colour: str) -> dict[str, Any] | None:
    """The standard deviation over the seeds, where there are several."""
    if not any(row["test_sd"] for row in rows):
        return None
    return {"type": "data", "array": [rounded(row["test_sd"] or 0) for row in rows], "width": 4, "thickness": 1.5,
            "color": colour}


def _along(figure: go.Figure, content: dict[str, Any], members: list[dict[str, Any]]) -> go.Figure:
    """A logarithmic axis with a tick at each amount."""
    amounts = sorted({member["amount"] for member in members})
    ends = around([math.log10(amount) for amount in amounts])
    figure.update_xaxes(type="log", title=content["axis"], tickmode="array", tickvals=amounts, range=ends,
                        ticktext=[show(amount) for amount in amounts])
    return figure
