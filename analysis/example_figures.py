"""Figures of the confirmed students' answers, from `analysis.examples`. None where there is nothing to draw."""

import html

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.examples import Calibration
from kdstudy.analysis.look import COLOURS, NEUTRAL, blank, faint, rounded, signed
from kdstudy.analysis.tables import SIGNIFICANT

MOST_CLASSES = 40  # of more, those that gain most and those that gain least
LONGEST_LABEL = 18
ARMS = {"teacher": ("teacher", "diamond", "dot"), "baseline": ("baseline", "square", "dash"),
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
    for title, part, symbol, colour in (
            ("holds among all classes (adjusted p < 0.05)", rows[certain], "circle", COLOURS["distill"]),
            ("may be chance", rows[~certain], "circle-open", NEUTRAL)):
        if part.empty:
            continue
        figure.add_scatter(
            x=[rounded(value) for value in part["gain"]], y=part["place"].tolist(), mode="markers", name=title,
            marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2}},
            error_x={"type": "data", "symmetric": False, "width": 0, "thickness": 2, "color": faint(colour, 0.6),
                     "array": [rounded(value) for value in part["high"] - part["gain"]],
                     "arrayminus": [rounded(value) for value in part["gain"] - part["low"]]},
            hovertext=[f"{html.escape(name)}: {signed(gain)} points<br>{before:.1f} → {after:.1f} % on {images} "
                       f"images, adjusted p {p:.2g}" for name, gain, before, after, images, p in
                       part[["name", "gain", "baseline", "distilled", "images", "p_adjusted"]].itertuples(index=False)],
            hovertemplate="%{hovertext}<extra></extra>")
    figure.update_xaxes(title="points gained (95 % interval)", zeroline=True, zerolinewidth=2,
                        zerolinecolor=NEUTRAL)
    figure.update_yaxes(showgrid=False, ticks="", range=[-0.8, len(rows) - 0.2], tickmode="array",
                        tickvals=rows["place"].tolist(), ticktext=[_short(name) for name in rows["name"]])
    return figure


def _short(name: str) -> str:
    """A class's name as a label; the whole of it is in the hover text."""
    return html.escape(name if len(name) <= LONGEST_LABEL else f"{name[:LONGEST_LABEL - 1]}…")


def agreement(shares: pd.DataFrame) -> go.Figure | None:
    """How often the students give the teacher's answer, in percent, where it is right and where it is wrong."""
    shares = shares[shares["images"] > 0]
    if shares.empty:
        return None
    figure = blank(360, showlegend=True, barmode="group", bargap=0.35)
    for arm, mine in shares.groupby("arm", sort=False):
        colour, _, _ = ARMS[arm]
        figure.add_bar(
            x=[f"teacher {row.teacher}<br>({row.images:,} images)" for row in mine.itertuples()],
            y=[rounded(value) for value in mine["agreement"]], name=arm,
            marker={"color": faint(COLOURS[colour], 0.4), "line": {"color": COLOURS[colour], "width": 1},
                    "pattern": {"shape": "/" if arm == "baseline" else "", "fgopacity": 0.3}},
            error_y={"type": "data", "array": [rounded(value) for value in mine["agreement_sd"].fillna(0)], "width": 5,
                     "color": NEUTRAL},
            text=[f"<b>{value:.0f} %</b>" for value in mine["agreement"]], textangle=0, textposition="inside",
            insidetextanchor="middle",
            customdata=[rounded(value) for value in mine["accuracy"]],
            hovertemplate=f"{arm}: %{{y}} % as the teacher<br>%{{customdata}} % right<extra></extra>")
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(title="same answer as the teacher, %", range=[0, 100])
    return figure


def reliability(measured: Calibration | None) -> go.Figure | None:
    """Accuracy against confidence, both in percent, per bin of the confidence; on the diagonal they agree."""
    if measured is None:
        return None
    figure = blank(430, showlegend=True)
    figure.add_scatter(x=[0, 100], y=[0, 100], mode="lines", name="as confident as right", hoverinfo="skip",
                       line={"color": NEUTRAL, "width": 1.5, "dash": "longdash"})
    for row in measured.errors.itertuples():
        bins = measured.bins[(measured.bins["arm"] == row.arm) & (measured.bins["count"] > 0)]
        colour, symbol, dash = ARMS[row.arm]
        share = bins["count"] / bins["count"].sum()
        figure.add_scatter(
            x=[rounded(value) for value in bins["confidence"]], y=[rounded(value) for value in bins["accuracy"]],
            mode="lines+markers", name=f"{row.arm}: off by {row.error:.1f} points",
            line={"color": COLOURS[colour], "dash": dash, "width": 2},
            marker={"symbol": symbol, "color": COLOURS[colour], "opacity": 0.75, "line": {"width": 1, "color": "white"},
                    "size": [6 + rounded(22 * value**0.5) for value in share]},
            customdata=[rounded(100 * value) for value in share],
            hovertemplate=f"{row.arm}: %{{x}} % confident, %{{y}} % right<br>%{{customdata}} % of its answers"
                          "<extra></extra>")
    figure.update_xaxes(title="confidence, %", range=[0, 103])
    figure.update_yaxes(title="right, %", range=[0, 103])
    return figure


def gain_sentence(classes: pd.DataFrame) -> str:
    """How many classes gain, and which the teacher helps most."""
    known = classes.dropna(subset=["p_adjusted"])
    better = known[(known["p_adjusted"] < SIGNIFICANT) & (known["gain"] > 0)].sort_values("gain", ascending=False)
    worse = known[(known["p_adjusted"] < SIGNIFICANT) & (known["gain"] < 0)].sort_values("gain")
    text = f"{len(better)} of {len(known)} classes gain beyond chance"
    if len(better):
        text += f", most of all {_and(better[:3])}"
    text += f"; {len(worse) or 'none'} {'loses' if len(worse) < 2 else 'lose'} beyond chance"
    return text + (f": {_and(worse[:3])}." if len(worse) else ".")


def _and(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.name} ({signed(row.gain)})" for row in rows.itertuples(index=False))
