"""The confirmed students' test predictions: per class, beside their teacher's, and their confidence."""

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, NEUTRAL, blank, faint, rounded, whiskers, zero_line
from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.number_text import show_points
from kdstudy.analysis.predictions import Calibration

MOST_CLASSES = 40  # if there are more, those that gain most and least are shown
LONGEST_LABEL = 18
LINES = {"teacher": ("teacher", "diamond", "dot"), "baseline": ("baseline", "square", "dash"),
         "distilled": ("distill", "circle", "solid")}  # colour, symbol, dash


def shown_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """The classes with an interval, from the smallest gain to the largest; of many, both ends."""
    known = classes.dropna(subset=["low"]).sort_values("gain", kind="stable", ignore_index=True)
    half = MOST_CLASSES // 2
    return known if len(known) <= MOST_CLASSES else pd.concat([known[:half], known[-half:]])


def class_gains(classes: pd.DataFrame) -> go.Figure | None:
    """The gain in points with its 95 % interval per class; filled where it holds after correction for their number."""
    rows = shown_classes(classes)
    if rows.empty:
        return None
    figure = blank(120 + 21 * len(rows), showlegend=True)
    rows = rows.assign(place=range(len(rows)))
    certain = rows["p_adjusted"] < SIGNIFICANT
    _draw_classes(figure, "holds among all classes (adjusted p < 0.05)", rows[certain], "circle", COLOURS["distill"])
    _draw_classes(figure, "may be chance", rows[~certain], "circle-open", NEUTRAL)
    figure.update_xaxes(title="points gained (95 % interval)", **zero_line() | {"zerolinewidth": 2})
    figure.update_yaxes(showgrid=False, ticks="", range=[-0.8, len(rows) - 0.2], tickmode="array",
                        tickvals=rows["place"].tolist(), ticktext=[_short(name) for name in rows["name"]])
    return figure


def _draw_classes(figure: go.Figure, name: str, rows: pd.DataFrame, symbol: str, colour: str) -> None:
    if rows.empty:
        return
    figure.add_scatter(
        x=[rounded(value) for value in rows["gain"]], y=rows["place"].tolist(), mode="markers", name=name,
        marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2}},
        error_x=whiskers([rounded(value) for value in rows["high"] - rows["gain"]],
                         [rounded(value) for value in rows["gain"] - rows["low"]],
                         width=0, thickness=2, color=faint(colour, 0.6)),
        hovertext=[_about_class(row) for row in rows.to_dict("records")],
        hovertemplate="%{hovertext}<extra></extra>")


def _about_class(row: dict[str, Any]) -> str:
    return (f"{html.escape(row['name'])}: {show_points(row['gain'])} points<br>{row['baseline']:.1f} → "
            f"{row['distilled']:.1f} % on {row['images']} images, adjusted p {row['p_adjusted']:.2g}")


def _short(name: str) -> str:
    """A class's name as a label; its hover text has all of it."""
    return html.escape(name if len(name) <= LONGEST_LABEL else f"{name[:LONGEST_LABEL - 1]}…")


def agreement(shares: pd.DataFrame) -> go.Figure | None:
    """How often the students predict the teacher's class, in percent, where the teacher is right and where wrong."""
    shares = shares[shares["images"] > 0]
    if shares.empty:
        return None
    figure = blank(360, showlegend=True, barmode="group", bargap=0.35)
    for arm, mine in shares.groupby("arm", sort=False):
        _draw_agreement(figure, arm, mine)
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(title="same prediction as the teacher, %", range=[0, 100])
    return figure


def _draw_agreement(figure: go.Figure, arm: str, shares: pd.DataFrame) -> None:
    colour = COLOURS[LINES[arm][0]]
    figure.add_bar(
        x=[f"teacher {row.teacher}<br>({row.images:,} images)" for row in shares.itertuples()],
        y=[rounded(value) for value in shares["agreement"]], name=arm,
        marker={"color": faint(colour, 0.4), "line": {"color": colour, "width": 1},
                "pattern": {"shape": "/" if arm == "baseline" else "", "fgopacity": 0.3}},
        error_y={"type": "data", "array": [rounded(value) for value in shares["agreement_sd"].fillna(0)], "width": 5,
                 "color": NEUTRAL},
        text=[f"<b>{value:.0f} %</b>" for value in shares["agreement"]], textangle=0, textposition="inside",
        insidetextanchor="middle",
        customdata=[rounded(value) for value in shares["accuracy"]],
        hovertemplate=f"{arm}: same prediction as the teacher on %{{y}} %<br>%{{customdata}} % right<extra></extra>")


def reliability(measured: Calibration | None) -> go.Figure | None:
    """Accuracy against confidence, both in percent, per bin of the confidence; on the diagonal they agree."""
    if measured is None:
        return None
    figure = blank(430, showlegend=True)
    figure.add_scatter(x=[0, 100], y=[0, 100], mode="lines", name="perfectly calibrated", hoverinfo="skip",
                       line={"color": NEUTRAL, "width": 1.5, "dash": "longdash"})
    for row in measured.errors.itertuples():
        bins = measured.bins[(measured.bins["arm"] == row.arm) & (measured.bins["count"] > 0)]
        _draw_reliability(figure, row.arm, row.error, bins)
    figure.update_xaxes(title="confidence, %", range=[0, 103])
    figure.update_yaxes(title="accuracy, %", range=[0, 103])
    return figure


def _draw_reliability(figure: go.Figure, arm: str, error: float, bins: pd.DataFrame) -> None:
    colour, symbol, dash = LINES[arm]
    share = bins["count"] / bins["count"].sum()
    figure.add_scatter(
        x=[rounded(value) for value in bins["confidence"]], y=[rounded(value) for value in bins["accuracy"]],
        mode="lines+markers", name=f"{arm}: off by {error:.1f} points",
        line={"color": COLOURS[colour], "dash": dash, "width": 2},
        marker={"symbol": symbol, "color": COLOURS[colour], "opacity": 0.75, "line": {"width": 1, "color": "white"},
                "size": [6 + rounded(22 * value**0.5) for value in share]},
        customdata=[rounded(100 * value) for value in share],
        hovertemplate=f"{arm}: %{{x}} % confidence, %{{y}} % right<br>%{{customdata}} % of its predictions"
                      "<extra></extra>")
