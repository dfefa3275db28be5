"""What each parameter does: the fitted accuracy against each parameter, with the real trials."""

import math
from itertools import groupby
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.figures.effects import INTERVAL
from kdstudy.analysis.figures.style import (
    ACCURACY,
    COLOURS,
    NEUTRAL,
    blank,
    faint,
    panel_domains,
    parameter_axis,
    rounded,
    title,
)
from kdstudy.analysis.figures.trials_at_budget import annotation_position, positions, reached, trials_at_budget
from kdstudy.analysis.study_files import ARMS, StudyFiles

SYMBOLS = {"baseline": "square-open", "distill": "circle-open"}
CURVES = (("dependence", "on average over the others", NEUTRAL, "dash"),
          ("best", "with the others at their best", COLOURS["distill"], "solid"))


def effect_curves(study: StudyFiles, found: dict[str, Any], columns: int = 3) -> go.Figure | None:
    """Accuracy in percent against each parameter: the mean over the others, and the best that they allow.

    A panel per parameter, in so many columns, with the trials that reached the budget. found: of sensitivity.json.
    """
    if not found.get("curves"):
        return None
    names = list(found["searched"])
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = blank(410 * rows + 30, showlegend=True, legend={"y": 1 + 0.02 / rows})
    trials, table = trials_at_budget(study, found), pd.DataFrame(found["curves"])
    for index, name in enumerate(names):
        _place_axes(figure, index, len(names), columns, name, found["searched"][name])
        _draw_curves(figure, table[table["parameter"] == name], found["searched"][name], index)
        _draw_trials(figure, trials, name, found, index)
        _mark_default(figure, found, name, index)
    figure.update_yaxes(range=_range(table, trials))
    return figure


def _range(curves: pd.DataFrame, trials: pd.DataFrame) -> list[float]:
    curves = curves.dropna(subset=["best"])
    low = min(curves["dependence"].min(), trials["percent"].min() if len(trials) else math.inf)
    high = max(curves["best_high"].max(), trials["percent"].max() if len(trials) else -math.inf)
    margin = 0.06 * (high - low) or 1
    return [rounded(low - margin), rounded(high + margin)]


def _place_axes(figure: go.Figure, index: int, count: int, columns: int, name: str, dimension: dict[str, Any]) -> None:
    across, upwards = panel_domains(index, count, columns)
    labelled = index % columns == 0
    figure.update_layout({
        f"xaxis{index + 1}": {"domain": across, "anchor": f"y{index + 1}",
                              "title": {"text": title(name)}, **parameter_axis(dimension)},
        f"yaxis{index + 1}": {"domain": [rounded(end) for end in upwards], "anchor": f"x{index + 1}",
                              "showticklabels": labelled, "title": {"text": ACCURACY if labelled else ""}}})


def _draw_curves(figure: go.Figure, table: pd.DataFrame, dimension: dict[str, Any], index: int) -> None:
    axes = {"xaxis": f"x{index + 1}", "yaxis": f"y{index + 1}"}
    x = positions(table["value"], dimension)
    for kind, name, colour, dash in CURVES:
        low, high, middle = ([None if pd.isna(value) else rounded(value) for value in table[f"{kind}{end}"]]
                             for end in ("_low", "_high", ""))
        across, upwards = _band(x, low, high)
        figure.add_scatter(x=across, y=upwards, fill="toself", mode="lines", line={"width": 0},
                           fillcolor=faint(colour, 0.18), hoverinfo="skip", showlegend=False, legendgroup=kind, **axes)
        figure.add_scatter(x=x, y=middle, mode="lines", name=name, legendgroup=kind, showlegend=index == 0,
                           line={"color": colour, "width": 2.5, "dash": dash},
                           customdata=list(zip(low, high, strict=True)),
                           hovertemplate=f"{name}: %{{y}} %<br>{INTERVAL} %{{customdata[0]}} to %{{customdata[1]}} %"
                                         "<extra></extra>", **axes)


def _band(x: list[Any], low: list[float | None], high: list[float | None]) -> tuple[list[Any], list[float | None]]:
    """The outline of a band, in parts where values are missing: plotly fills each part by itself."""
    across: list[Any] = []
    upwards: list[float | None] = []
    for present, part in groupby(range(len(x)), key=lambda index: low[index] is not None):
        if present:
            there = list(part)
            back = there[::-1]
            gap = [None] if across else []
            across += [*gap, *(x[index] for index in there), *(x[index] for index in back)]
            upwards += [*gap, *(high[index] for index in there), *(low[index] for index in back)]
    return across, upwards


def _draw_trials(figure: go.Figure, trials: pd.DataFrame, name: str, found: dict[str, Any], index: int) -> None:
    dimension = found["searched"][name]
    for arm, symbol in SYMBOLS.items():
        mine = trials[(trials["stage"] == arm) & trials[name].notna()] if name in trials else trials[:0]
        if "linear" in dimension:  # the baseline's alpha = 0 may lie outside
            mine = mine[mine[name].between(*dimension["linear"])]
        if mine.empty:
            continue
        first = not any(trace.legendgroup == arm for trace in figure.data)
        figure.add_scatter(
            x=positions(mine[name], dimension), y=[rounded(value) for value in mine["percent"]], mode="markers",
            name=f"{ARMS[arm]} trial {reached(found)}", legendgroup=arm, showlegend=first, cliponaxis=False,
            marker={"symbol": symbol, "size": 8, "color": COLOURS[arm], "line": {"width": 1.6}},
            customdata=mine["trial"].tolist(),
            hovertemplate=f"{ARMS[arm]} trial %{{customdata}}: %{{y}} %<extra></extra>",
            xaxis=f"x{index + 1}", yaxis=f"y{index + 1}")


def _mark_default(figure: go.Figure, found: dict[str, Any], name: str, index: int) -> None:
    default = next((row["default"] for row in found["prices"] if row["parameter"] == name), None)
    if default is None:
        return
    dimension = found["searched"][name]
    place, number = positions([default], dimension)[0], index + 1 if index else ""  # plotly's first axis has no number
    axes = {"xref": f"x{number}", "yref": f"y{number} domain"}
    figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, layer="below",
                     line={"dash": "dot", "width": 1.5, "color": NEUTRAL}, **axes)
    figure.add_annotation(x=annotation_position(place, dimension), y=0.01, yanchor="bottom", text="default",
                          showarrow=False, textangle=-90, xanchor="right", font={"size": 11}, **axes)
