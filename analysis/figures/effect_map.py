"""The map: the fitted accuracy over two parameters, the others at their best."""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.figures.style import INK, blank, parameter_axis, rounded, title
from kdstudy.analysis.figures.trials_at_budget import positions, reached, trials_at_budget
from kdstudy.analysis.study_files import StudyFiles

UNKNOWN = "rgba(128,128,128,0.35)"  # where no trial is near, nothing is drawn
SCALE = "Cividis"  # reads the same to colour-blind eyes, and on either background


def best_map(study: StudyFiles, found: dict[str, Any]) -> go.Figure | None:
    """The best accuracy in percent that the other parameters allow, for every pair of values of two parameters.

    found: of sensitivity.json.
    """
    if not found.get("map"):
        return None
    first, second = found["map_of"]
    sides = {name: found["searched"][name] for name in (first, second)}
    figure = blank(520, showlegend=True)
    figure.add_trace(_surface(found["map"], sides))
    figure.update_layout(plot_bgcolor=UNKNOWN)
    _mark_trials(figure, study, found, (first, second))
    figure.update_xaxes(title=title(first), **(_within(sides[first]) | {"showgrid": False}))
    figure.update_yaxes(title=title(second), **(_within(sides[second]) | {"showgrid": False}))
    return figure


def _surface(rows: list[dict[str, Any]], sides: dict[str, dict[str, Any]]) -> go.Contour | go.Heatmap:
    """Contours, or a heat map where a side has choices, between which nothing lies."""
    first, second = sides
    table = pd.DataFrame(rows).pivot(index=second, columns=first, values="best")
    table = table.reindex(index=_in_order(table.index, sides[second]), columns=_in_order(table.columns, sides[first]))
    kind = go.Heatmap if any("choice" in side for side in sides.values()) else go.Contour
    lines = {} if kind is go.Heatmap else {"ncontours": 14, "line": {"width": 0.6, "color": "rgba(0,0,0,0.45)"}}
    return kind(
        x=positions(table.columns, sides[first]), y=positions(table.index, sides[second]),
        z=[[None if pd.isna(value) else rounded(value) for value in row] for row in table.to_numpy()],
        connectgaps=False, colorscale=SCALE, **lines,
        colorbar={"title": {"text": "fitted validation accuracy, %", "side": "right"}, "thickness": 14,
                  "outlinewidth": 0},
        hovertemplate=f"{title(first)} %{{x}}<br>{title(second)} %{{y}}<br>best %{{z}} %<extra></extra>")


def _in_order(values: Any, dimension: dict[str, Any]) -> list[Any]:
    return [value for value in dimension["choice"] if value in values] if "choice" in dimension else sorted(values)


def _within(dimension: dict[str, Any]) -> dict[str, Any]:
    """The parameter's axis without the margin beyond its bounds."""
    axis = parameter_axis(dimension)
    if "log" in dimension:
        axis["range"] = [math.log10(bound) for bound in dimension["log"]]
    elif "linear" in dimension:
        axis["range"] = dimension["linear"]
    return axis


def _mark_trials(figure: go.Figure, study: StudyFiles, found: dict[str, Any], pair: tuple[str, str]) -> None:
    trials = trials_at_budget(study, found)
    trials = trials[(trials["stage"] == found["arm"]) & trials[list(pair)].notna().all(axis=1)]
    winner = (study.choice(found["arm"]) or {}).get("winner")
    marks = ((f"trial {reached(found)}", trials, "circle", 8),
             ("default point", trials[trials["origin"] == "default"], "diamond", 14),
             ("winner", trials[trials["trial"] == winner], "star", 17))
    for name, rows, symbol, size in marks:
        if len(rows):
            x, y = (positions(rows[parameter], found["searched"][parameter]) for parameter in pair)
            figure.add_scatter(
                x=x, y=y, mode="markers", name=name, cliponaxis=False,
                marker={"symbol": symbol, "size": size, "color": "white", "line": {"color": INK, "width": 1.6}},
                customdata=[[int(trial), rounded(percent)] for trial, percent in
                            zip(rows["trial"], rows["percent"], strict=True)],
                hovertemplate=f"{name}: trial %{{customdata[0]}}, %{{customdata[1]}} %<extra></extra>")
