"""Differences of accuracy with their intervals, one below the other, beside a line at zero."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import around, blank, rounded, whiskers, zero_line
from kdstudy.analysis.number_text import show_bounds, show_points


def interval_figure(gains: Sequence[dict[str, Any]], traces: Sequence[go.Scatter], title: str, each: int) -> go.Figure:
    """The figure of these traces, from below. gains: what they show, in points. each: pixels of height for one."""
    figure = blank(110 + each * len(gains))
    figure.add_traces(traces)
    ends = [0.0, *(gain[end] for gain in gains for end in ("low", "high"))]
    figure.update_xaxes(title=title, range=around(ends), **zero_line())
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(gains) - 0.3])
    return figure


def interval(gain: dict[str, Any], label: str, hover: tuple[str, str], marker: dict[str, Any], text_size: int = 12,
             thickness: int = 2) -> go.Scatter:
    """One gain, in points, at its label. hover: what it is the gain of, and what its interval is called."""
    mean, low, high = (rounded(gain[name]) for name in ("mean", "low", "high"))
    return go.Scatter(
        x=[mean], y=[label], mode="markers+text", text=[show_points(gain["mean"])], textposition="top center",
        textfont={"size": text_size}, cliponaxis=False, marker=marker,
        error_x=whiskers([rounded(high - mean)], [rounded(mean - low)], width=7, thickness=thickness),
        hovertemplate=f"{hover[0]}: {show_points(gain['mean'])} points<br>"
                      f"{hover[1]} {show_bounds(gain)}<extra></extra>")
