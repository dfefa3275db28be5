"""Figures of what the hyperparameters do, from `analysis.sensitivity.analyse`. None where there is nothing to draw."""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.budget_model import CONFIDENCE
from kdstudy.analysis.look import (
    ACCURACY,
    ARMS,
    COLOURS,
    NEUTRAL,
    SYMBOLS,
    TITLES,
    blank,
    faint,
    parameter_axis,
    rounded,
    show,
    signed,
)
from kdstudy.analysis.results import StudyFiles
from kdstudy.analysis.sensitivity import NEAR_BEST, PREDICTIVE_RANKS

INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"
SCALE = "Cividis"  # even to colour-blind eyes, and on either background
TRIALS = {"baseline": "square-open", "distill": "circle-open"}


def price_of_not_tuning(found: dict[str, Any]) -> go.Figure | None:
    """Points of accuracy lost by leaving one parameter at its default, the others tuned again, with intervals."""
    rows = sorted(found.get("prices", []), key=lambda row: row["price"])
    if not rows:
        return None
    figure = blank(100 + 62 * len(rows))
    for row in rows:
        price, low, high = (rounded(row[name]) for name in ("price", "low", "high"))
        shown = row["low"] > 0
        colour = COLOURS["distill"] if shown else NEUTRAL
        figure.add_scatter(
            x=[price], y=[f"{_title(row['parameter'])}<br>left at {show(row['default'])}"], mode="markers+text",
            text=[f"{price:.1f}".replace("-", "−")], textposition="top center", cliponaxis=False,
            marker={"size": 13, "color": colour, "symbol": "circle" if shown else "circle-open",
                    "line": {"width": 2, "color": colour}},
            error_x={"type": "data", "symmetric": False, "array": [rounded(high - price)],
                     "arrayminus": [rounded(price - low)], "width": 7, "thickness": 3},
            hovertemplate=f"{_title(row['parameter'])} at {show(row['default'])}: {price} points lost<br>"
                          f"{INTERVAL} {signed(low)} to {signed(high)}<extra></extra>")
    ends = [0.0, *(row[end] for row in rows for end in ("low", "high"))]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    figure.update_xaxes(title=f"points lost ({INTERVAL})", zeroline=True, zerolinewidth=2.5,
                        zerolinecolor=NEUTRAL, range=[min(ends) - margin, max(ends) + margin])
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(rows) - 0.3])
    return figure


def effects(found: dict[str, Any]) -> go.Figure | None:
    """The share of the variance in percent that each parameter and pair explains, over the space and near its best."""
    if not found.get("effects"):
        return None
    order = sorted(found["effects"], key=lambda row: (row["other"] is None, row["share"]))
    names = [_effect_name(row) for row in order]
    figure = blank(110 + 44 * len(order), showlegend=True, barmode="group", bargap=0.25,
                   legend={"traceorder": "reversed"})
    near = {_effect_name(row): row for row in found["effects_near"]}
    for title, rows, colour, pattern in (
            (f"within {NEAR_BEST:g} points of the best", [near[name] for name in names], NEUTRAL, "/"),
            ("over the whole ranges", order, COLOURS["distill"], "")):
        shares = [rounded(100 * row["share"]) for row in rows]
        figure.add_bar(
            orientation="h", y=names, x=shares, name=title,
            marker={"color": faint(colour, 0.4), "pattern": {"shape": pattern, "fgopacity": 0.5},
                    "line": {"color": colour, "width": 1}},
            error_x={"type": "data", "symmetric": False, "width": 5, "thickness": 2, "color": NEUTRAL,
                     "array": [rounded(max(0, 100 * (row["high"] - row["share"]))) for row in rows],
                     "arrayminus": [rounded(max(0, 100 * (row["share"] - row["low"]))) for row in rows]},
            customdata=[[rounded(100 * row["low"]), rounded(100 * row["high"])] for row in rows],
            hovertemplate="%{y}: %{x} %<br>" + INTERVAL
                          + " %{customdata[0]} to %{customdata[1]} %<extra>" + title + "</extra>")
    figure.update_xaxes(title="variance explained, %", rangemode="tozero")
    figure.update_yaxes(showgrid=False, ticks="")
    return figure


def _effect_name(row: dict[str, Any]) -> str:
    names = [SYMBOLS.get(name, name.replace("_", " ")) for name in (row["parameter"], row["other"]) if name]
    return " × ".join(names)


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def ranges(found: dict[str, Any]) -> str:
    """The searched ranges in words: what every share of the variance depends on."""
    texts = []
    for name, dimension in found["searched"].items():
        (kind, values), = dimension.items()
        shown = [show(value) for value in values]
        span = f"in {{{', '.join(shown)}}}" if kind == "choice" else f"{shown[0]} to {shown[1]}"
        texts.append(f"{SYMBOLS.get(name, name.replace('_', ' '))} {span}{' (log)' if kind == 'log' else ''}")
    return ", ".join(texts)


def effect_curves(study: StudyFiles, found: dict[str, Any], columns: int = 3) -> go.Figure | None:
    """Accuracy in percent against each parameter: the mean over the others, and the best that they allow.

    A panel per parameter, with the trials that came to the budget in it.
    """
    if not found.get("curves"):
        return None
    names = list(found["searched"])
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = blank(410 * rows + 30, showlegend=True, legend={"y": 1 + 0.02 / rows})
    trials = _at_budget(study, found)
    table = pd.DataFrame(found["curves"])
    for index, name in enumerate(names):
        _place(figure, index, len(names), columns, name, found["searched"][name])
        _draw_curves(figure, table[table["parameter"] == name], found["searched"][name], index)
        _draw_trials(figure, trials, name, found, index)
        _mark_default(figure, study, found, name, index)
    low = min(table["dependence"].min(), trials["percent"].min() if len(trials) else math.inf)
    high = max(table["best_high"].max(), trials["percent"].max() if len(trials) else -math.inf)
    margin = 0.06 * (high - low) or 1
    figure.update_yaxes(range=[rounded(low - margin), rounded(high + margin)])
    return figure


def _at_budget(study: StudyFiles, found: dict[str, Any]) -> pd.DataFrame:
    """The trials that entered the process and came to the budget, with their accuracies in percent; the baseline's at
    alpha = 0."""
    arms = [found["arm"], "baseline"] if found["counts"]["baseline"] else [found["arm"]]
    curves = study.curves[(study.curves["epoch"] == found["budget"]) & study.curves["stage"].isin(arms)
                          & (study.curves["decision"] != "failed")]
    wanted = ["stage", "trial", "origin", *study.parameter_names]
    merged = curves[["stage", "trial", "validation_accuracy"]].merge(study.trials[wanted], on=["stage", "trial"])
    merged["percent"] = 100 * merged["validation_accuracy"].astype(float)
    if "alpha" in merged and len(arms) == 2:
        merged.loc[merged["stage"] == "baseline", "alpha"] = 0.0
    return merged.dropna(subset=["percent"])


def _reached(found: dict[str, Any]) -> str:
    return "at the full budget" if found["budget"] == found["epochs"] else f"at epoch {found['budget']}"


def _place(figure: go.Figure, index: int, count: int, columns: int, name: str, dimension: dict[str, Any]) -> None:
    rows, column, row = math.ceil(count / columns), index % columns, index // columns
    across, between = 0.035, 0.2 / rows
    width, height = (1 - across * (columns - 1)) / columns, (1 - between * (rows - 1)) / rows
    left, bottom = column * (width + across), (rows - 1 - row) * (height + between)
    figure.update_layout({
        f"xaxis{index + 1}": {"domain": [rounded(left), rounded(min(1, left + width))], "anchor": f"y{index + 1}",
                              "title": {"text": _title(name)}, **parameter_axis(dimension)},
        f"yaxis{index + 1}": {"domain": [rounded(bottom), rounded(bottom + height)], "anchor": f"x{index + 1}",
                              "showticklabels": column == 0, "title": {"text": ACCURACY if column == 0 else ""}}})


def _axis(letter: str, index: int) -> str:
    """plotly's name of a panel's axis: the first has no number."""
    return f"{letter}{index + 1 if index else ''}"


def _positions(values: Any, dimension: dict[str, Any]) -> list[Any]:
    """Where values stand on a parameter's axis."""
    if "choice" in dimension:
        return [dimension["choice"].index(value) for value in values]
    return [rounded(value) for value in values]


def _draw_curves(figure: go.Figure, table: pd.DataFrame, dimension: dict[str, Any], index: int) -> None:
    axes = {"xaxis": f"x{index + 1}", "yaxis": f"y{index + 1}"}
    x = _positions(table["value"], dimension)
    for kind, title, colour, dash in (("dependence", "on average over the others", NEUTRAL, "dash"),
                                      ("best", "with the others at their best", COLOURS["distill"], "solid")):
        low, high, middle = ([rounded(value) for value in table[f"{kind}{end}"]] for end in ("_low", "_high", ""))
        figure.add_scatter(x=x + x[::-1], y=high + low[::-1], fill="toself", mode="lines", line={"width": 0},
                           fillcolor=faint(colour, 0.18), hoverinfo="skip", showlegend=False, legendgroup=kind, **axes)
        figure.add_scatter(x=x, y=middle, mode="lines", name=title, legendgroup=kind, showlegend=index == 0,
                           line={"color": colour, "width": 2.5, "dash": dash},
                           customdata=list(zip(low, high, strict=True)),
                           hovertemplate=f"{title}: %{{y}} %<br>{INTERVAL} %{{customdata[0]}} to %{{customdata[1]}} %"
                                         "<extra></extra>", **axes)


def _draw_trials(figure: go.Figure, trials: pd.DataFrame, name: str, found: dict[str, Any], index: int) -> None:
    dimension = found["searched"][name]
    for arm, symbol in TRIALS.items():
        mine = trials[(trials["stage"] == arm) & trials[name].notna()] if name in trials else trials[:0]
        if "linear" in dimension:  # the baseline's alpha = 0 may lie outside
            mine = mine[mine[name].between(*dimension["linear"])]
        if mine.empty:
            continue
        first = not any(trace.legendgroup == arm for trace in figure.data)
        figure.add_scatter(
            x=_positions(mine[name], dimension), y=[rounded(value) for value in mine["percent"]], mode="markers",
            name=f"{ARMS[arm]} trial {_reached(found)}", legendgroup=arm, showlegend=first, cliponaxis=False,
            marker={"symbol": symbol, "size": 8, "color": COLOURS[arm], "line": {"width": 1.6}},
            customdata=mine["trial"].tolist(),
            hovertemplate=f"{ARMS[arm]} trial %{{customdata}}: %{{y}} %<extra></extra>",
            xaxis=f"x{index + 1}", yaxis=f"y{index + 1}")


def _mark_default(figure: go.Figure, study: StudyFiles, found: dict[str, Any], name: str, index: int) -> None:
    default = next((row["default"] for row in found["prices"] if row["parameter"] == name), None)
    if default is None:
        return
    place = _positions([default], found["searched"][name])[0]
    figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, xref=_axis("x", index),
                     yref=f"{_axis('y', index)} domain", layer="below",
                     line={"dash": "dot", "width": 1.5, "color": NEUTRAL})
    figure.add_annotation(x=math.log10(place) if "log" in found["searched"][name] else place, y=0.01, yanchor="bottom",
                          xref=_axis("x", index), yref=f"{_axis('y', index)} domain", text="default", showarrow=False,
                          textangle=-90, xanchor="right", font={"size": 11})


def best_map(study: StudyFiles, found: dict[str, Any]) -> go.Figure | None:
    """The best accuracy in percent that the other parameters allow, for every pair of two of them."""
    if not found.get("map"):
        return None
    first, second = found["map_of"]
    table = pd.DataFrame(found["map"]).pivot(index=second, columns=first, values="best")
    sides = {name: found["searched"][name] for name in (first, second)}
    table = table.reindex(index=_in_order(table.index, sides[second]), columns=_in_order(table.columns, sides[first]))
    figure = blank(520, showlegend=True)
    x, y = _positions(table.columns, sides[first]), _positions(table.index, sides[second])
    kind = go.Heatmap if any("choice" in side for side in sides.values()) else go.Contour
    lines = {} if kind is go.Heatmap else {"ncontours": 14, "line": {"width": 0.6, "color": "rgba(0,0,0,0.45)"}}
    figure.add_trace(kind(
        x=x, y=y, z=[[rounded(value) for value in row] for row in table.to_numpy()], colorscale=SCALE, **lines,
        colorbar={"title": {"text": "fitted validation accuracy, %", "side": "right"}, "thickness": 14,
                  "outlinewidth": 0},
        hovertemplate=f"{_title(first)} %{{x}}<br>{_title(second)} %{{y}}<br>best %{{z}} %<extra></extra>"))
    _mark_on_map(figure, study, found, (first, second))
    figure.update_xaxes(title=_title(first), **(_within(sides[first]) | {"showgrid": False}))
    figure.update_yaxes(title=_title(second), **(_within(sides[second]) | {"showgrid": False}))
    return figure


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


def _mark_on_map(figure: go.Figure, study: StudyFiles, found: dict[str, Any], pair: tuple[str, str]) -> None:
    trials = _at_budget(study, found)
    trials = trials[(trials["stage"] == found["arm"]) & trials[list(pair)].notna().all(axis=1)]
    winner = (study.choice(found["arm"]) or {}).get("winner")
    for title, rows, symbol, size in (
            (f"trial {_reached(found)}", trials, "circle", 8),
            ("default point", trials[trials["origin"] == "default"], "diamond", 14),
            ("winner", trials[trials["trial"] == winner], "star", 17)):
        if len(rows):
            figure.add_scatter(
                x=_positions(rows[pair[0]], found["searched"][pair[0]]),
                y=_positions(rows[pair[1]], found["searched"][pair[1]]), mode="markers", name=title, cliponaxis=False,
                marker={"symbol": symbol, "size": size, "color": "white", "line": {"color": "#1f2328", "width": 1.6}},
                customdata=[[int(trial), rounded(percent)] for trial, percent in
                            zip(rows["trial"], rows["percent"], strict=True)],
                hovertemplate=f"{title}: trial %{{customdata[0]}}, %{{customdata[1]}} %<extra></extra>")


def rung_correlations(correlations: pd.DataFrame, last: int) -> go.Figure | None:
    """Rank correlation of each rung with the last epoch, per arm, with the number of trials."""
    rows = correlations[correlations["later"] == last]
    if rows.empty:
        return None
    figure = blank(330, showlegend=True)
    for arm, mine in rows.groupby("arm", sort=False):
        figure.add_scatter(
            x=[f"epoch {rung}" for rung in mine["rung"]], y=[rounded(value) for value in mine["correlation"]],
            mode="markers+lines+text", name=ARMS[arm], cliponaxis=False,
            text=[f"n = {count}" for count in mine["trials"]],
            textposition="top center" if arm == "distill" else "bottom center",
            marker={"size": 11, "symbol": TRIALS[arm].removesuffix("-open"), "color": COLOURS[arm]},
            line={"color": faint(COLOURS[arm], 0.5), "dash": "dot"},
            hovertemplate=f"{ARMS[arm]}, %{{x}}: rank correlation %{{y}} with epoch {last}<extra></extra>")
    figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=PREDICTIVE_RANKS, y1=PREDICTIVE_RANKS,
                     line={"dash": "dash", "color": NEUTRAL, "width": 1.5}, layer="below")
    figure.update_xaxes(type="category", title="rung")
    figure.update_yaxes(title=f"rank correlation<br>with epoch {last}",
                        range=[min(-0.1, rounded(rows["correlation"].min() - 0.2)), 1.15], nticks=6)
    return figure
