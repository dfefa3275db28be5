"""The report's figures, in plotly. Each function returns None where there is nothing to draw yet.

Trials at the full budget and trials that were stopped stand in separate panels: their accuracies do not compare.
"""

import html
import math
import textwrap
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.look import (
    ACCURACY,
    ARMS,
    COLOURS,
    FAILED,
    NEUTRAL,
    ORIGINS,
    SYMBOLS,
    TITLES,
    blank,
    faint,
    parameter_axis,
    rounded,
    show,
    signed,
)
from kdstudy.analysis.results import SEARCH_STAGES, STAGES, StudyFiles

STATES = {"complete": "full budget", "stopped": "stopped early: value at the stop", "running": "running: value so far",
          "failed": "failed"}
MOST_BEST = 10  # lines that stand out
MARKERS = {"complete": "circle", "stopped": "circle-open", "running": "triangle-right-open", "failed": "x"}


def learning_curves(study: StudyFiles, stage: str) -> go.Figure | None:
    """Validation accuracy in percent against the epoch, a line per trial of a stage; dotted lines mark the rungs."""
    curves = study.curves[(study.curves["stage"] == stage) & study.curves["validation_accuracy"].notna()]
    if curves.empty:
        return None
    figure = blank(430, showlegend=True, legend={"traceorder": "reversed"})
    winner, title = _leader(study, stage)
    lines = dict(list(curves.groupby("trial")))
    trials = [trial for trial in _trials(study, stage) if trial["trial"] in lines]
    # What is drawn last lies on top: the stopped ones first, the winner last.
    trials.sort(key=lambda trial: (trial["trial"] == winner, trial["ended"] == "complete"))
    shown: set[str] = set()
    for trial in trials:
        name = title if trial["trial"] == winner else STATES[trial["ended"]]
        figure.add_trace(_curve(study, trial, lines[trial["trial"]], name, name not in shown, len(trials)))
        shown.add(name)
    epochs = _epochs(study, stage, curves)
    if stage in SEARCH_STAGES:
        _mark_rungs(figure, study.description.get("rungs", []), epochs)
    figure.update_xaxes(title="epoch", range=[0, 1.02 * epochs])
    figure.update_yaxes(title=ACCURACY)
    return figure


def teacher_curve(study: StudyFiles) -> go.Figure | None:
    """The teacher's validation accuracy in percent against the epoch, a line per learning rate that was tried."""
    figure = learning_curves(study, "teacher")
    return figure.update_layout(height=330) if figure else None


def optimisation_history(study: StudyFiles, columns: int = 2) -> go.Figure | None:
    """Last validation accuracy in percent against the trial number, a panel per arm in so many columns."""
    arms = [arm for arm in SEARCH_STAGES if any(map(_drawable, _trials(study, arm)))]
    panels = []
    for arm in arms:
        points = [Point(trial, trial["trial"]) for trial in _trials(study, arm) if _drawable(trial)]
        last = max(point.x for point in points)
        axis = {"range": [-0.7, last + 0.7], "dtick": _whole_step(last), "tick0": 0}
        panels.append(Panel(f"{ARMS[arm]}: trial number", axis, points))
    return _panels(study, panels, columns, best_so_far=True)


def slices(study: StudyFiles, columns: int = 3) -> go.Figure | None:
    """Last validation accuracy in percent against each searched parameter, a panel per parameter in so many columns."""
    searched = study.config.get("search", {})
    panels = []
    for name in study.parameter_names:
        dimension = searched.get(name)
        if not isinstance(dimension, dict):
            continue
        points = [Point(trial, _position(trial, name, dimension)) for arm in SEARCH_STAGES
                  for trial in _trials(study, arm) if _drawable(trial) and trial[name] is not None]
        if points:
            panels.append(Panel(TITLES.get(name, name), parameter_axis(dimension), points))
    return _panels(study, panels, columns)


def gain_intervals(outcome: dict[str, Any]) -> go.Figure | None:
    """The gain over the tuned baseline in percentage points with its 95 % interval, for each row that has one."""
    rows = [row for row in outcome["rows"] if row.get("gain")]
    if not rows:
        return None
    figure = blank(110 + 58 * len(rows))
    figure.add_traces([_gain(row) for row in rows])
    ends = [0.0, *(row["gain"][end] for row in rows for end in ("low", "high"))]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    figure.update_xaxes(
        title="test accuracy gained over the tuned<br>baseline, points (95 % interval)",
        range=[min(ends) - margin, max(ends) + margin], zeroline=True, zerolinewidth=2.5, zerolinecolor=NEUTRAL)
    figure.update_yaxes(showgrid=False, showline=False, ticks="", range=[-0.5, len(rows) - 0.3])
    return figure


def _gain(row: dict[str, Any]) -> go.Scatter:
    mean, low, high = (rounded(row["gain"][name]) for name in ("mean", "low", "high"))
    main = (row["arm"], row["configuration"]) == ("distilled", "tuned")
    colour = COLOURS["distill" if row["arm"] == "distilled" else "baseline"]
    return go.Scatter(
        x=[mean], y=[_row_label(row, main)], mode="markers+text", text=[signed(mean)], textposition="top center",
        textfont={"size": 15 if main else 12}, cliponaxis=False,
        marker={"color": colour, "size": 14 if main else 10, "symbol": "circle" if main else "circle-open",
                "line": {"width": 2, "color": colour}},
        error_x={"type": "data", "symmetric": False, "array": [rounded(high - mean)],
                 "arrayminus": [rounded(mean - low)], "width": 7, "thickness": 4 if main else 2},
        hovertemplate=f"{row['arm']}, {row['configuration']}: {signed(mean)} points<br>"
                      f"95 % interval {signed(low)} to {signed(high)}<extra></extra>")


def _row_label(row: dict[str, Any], main: bool) -> str:
    label = f"{row['arm']},<br>{row['configuration']}"
    return f"<b>{label}</b>" if main else label


def _trials(study: StudyFiles, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage's trials, with None for what a trial does not have."""
    trials = study.trials[study.trials["stage"] == stage].astype(object)
    return trials.where(trials.notna(), None).to_dict("records")


def _drawable(trial: dict[str, Any]) -> bool:
    return trial["ended"] == "failed" or trial["last_validation_accuracy"] is not None


def _leader(study: StudyFiles, stage: str) -> tuple[int | None, str]:
    """The number of the stage's winner, or of its best full-budget trial while it has none; and what to call it."""
    done = study.choice(stage) if stage in SEARCH_STAGES else study.done(stage)
    if done:
        number = done.get("winner", done.get("trial"))
        return number, f"winner: trial {number}"
    complete = [trial for trial in _trials(study, stage)
                if trial["ended"] == "complete" and trial["last_validation_accuracy"] is not None]
    best = max(complete, key=lambda trial: (trial["last_validation_accuracy"], -trial["trial"]), default=None)
    return (best["trial"], f"leader so far: trial {best['trial']}") if best else (None, "")


def _about(study: StudyFiles, trial: dict[str, Any]) -> str:
    """Hover text: the trial's number, where it came from and its parameters."""
    parameters = ", ".join(f"{SYMBOLS.get(name, name)} {show(trial[name])}" for name in study.parameter_names
                           if trial[name] is not None)
    origin = ORIGINS.get(trial["origin"])
    return f"<b>trial {trial['trial']}</b>{f' ({origin})' if origin else ''}<br>{parameters}"


def _fate(trial: dict[str, Any]) -> str:
    """Hover text: how far the trial came and how it ended."""
    accuracy = trial["last_validation_accuracy"]
    value = "no accuracy reported" if accuracy is None else f"{100 * accuracy:.2f} % at epoch {trial['epochs']}"
    reason = html.escape(textwrap.shorten(trial["reason"] or "", 70, placeholder=" …"))
    return value + {"complete": "", "stopped": ", stopped early", "running": ", running",
                    "failed": f"<br>failed: {reason}"}[trial["ended"]]


def _curve(study: StudyFiles, trial: dict[str, Any], reports: Any, title: str, in_legend: bool,
           lines: int) -> go.Scatter:
    ended, leads = trial["ended"], title not in STATES.values()
    colour = COLOURS[trial["stage"]]
    if not leads:
        colour = faint(colour, _crowded(0.6 if ended == "complete" else 0.5, lines))
    symbol, size = ("star", 14) if leads else (MARKERS[ended], {"stopped": 6, "failed": 9}.get(ended, 0))
    return go.Scatter(
        x=reports["epoch"].tolist(), y=[rounded(100 * value) for value in reports["validation_accuracy"]],
        mode="lines+markers" if size else "lines", name=title.split(":")[0] if title in STATES.values() else title,
        line={"color": colour, "width": 3.5 if leads else 1.6 if ended == "complete" else 1,
              "dash": "dot" if ended == "running" else "solid"},
        marker={"symbol": symbol, "size": [0] * (len(reports) - 1) + [size], "opacity": 1,
                "color": FAILED if ended == "failed" else colour, "line": {"width": 0 if leads else 1.2}},
        legendgroup=title, showlegend=in_legend, meta=_about(study, trial),
        hovertemplate="%{meta}<br>%{y} % at epoch %{x}<extra></extra>")


def _epochs(study: StudyFiles, stage: str, curves: Any) -> int:
    reached = int(curves["epoch"].max())
    return max(reached, study.description.get("epochs", 0)) if stage in SEARCH_STAGES else reached


def _mark_rungs(figure: go.Figure, rungs: list[int], epochs: int) -> None:
    labelled = 2 * epochs
    for rung in reversed(rungs):
        figure.add_shape(type="line", x0=rung, x1=rung, y0=0, y1=1, yref="paper", layer="below",
                         line={"dash": "dot", "width": 1.5, "color": NEUTRAL})
        if labelled - rung >= 0.15 * epochs:  # else the labels would overlap on a phone
            figure.add_annotation(x=rung, y=1, yref="paper", yanchor="bottom", showarrow=False, font={"size": 11},
                                  text=f"epoch {rung}")
            labelled = rung
    if rungs:
        figure.update_layout(legend={"y": 1.07})


@dataclass(frozen=True)
class Point:
    """A trial and where it stands on the x axis."""

    trial: dict[str, Any]
    x: float

    @property
    def complete(self) -> bool:
        return self.trial["ended"] == "complete"

    @property
    def percent(self) -> float | None:
        accuracy = self.trial["last_validation_accuracy"]
        return None if accuracy is None else rounded(100 * accuracy)


@dataclass(frozen=True)
class Panel:
    """What shares an x axis: full-budget trials above, the others below."""

    title: str
    axis: dict[str, Any]
    points: list[Point]


def _panels(study: StudyFiles, panels: list[Panel], columns: int, best_so_far: bool = False) -> go.Figure | None:
    """Panels in a grid; the y axes of all of them have the same range, so that they compare."""
    if not panels:
        return None
    points = [point for panel in panels for point in panel.points]
    parts = [part for part in (True, False) if any(point.complete == part for point in points)]
    ranges = [_padded([point.percent for point in points if point.complete == part]) for part in parts]
    columns = min(columns, len(panels))
    height = 440 * math.ceil(len(panels) / columns)
    figure = blank(height, showlegend=True, legend={"y": 1 + 8 / height})
    for index, panel in enumerate(panels):
        axes = _place_axes(figure, panel, index, len(panels), columns, dict(zip(parts, ranges, strict=True)))
        if best_so_far:
            _draw_best_so_far(figure, panel, axes)
        _draw_points(figure, study, panel, axes, {part: bounds[0] for part, bounds in zip(parts, ranges, strict=True)})
    _draw_legend(figure, study, points, best_so_far)
    return figure


def _padded(percents: list[float | None]) -> list[float]:
    known = [percent for percent in percents if percent is not None] or [0.0, 100.0]
    margin = max(0.12 * (max(known) - min(known)), 0.6)
    return [rounded(min(known) - margin), rounded(max(known) + margin)]


def _place_axes(figure: go.Figure, panel: Panel, index: int, count: int, columns: int,
                ranges: dict[bool, list[float]]) -> dict[bool, dict[str, str]]:
    """Lay out one panel's axes; returns, for each of its parts, the names under which traces refer to them."""
    rows, column, row = math.ceil(count / columns), index % columns, index // columns
    across, between = 0.035, 0.2 / rows  # gaps; the lower one holds the title of an x axis
    width, height = (1 - across * (columns - 1)) / columns, (1 - between * (rows - 1)) / rows
    left, bottom = column * (width + across), (rows - 1 - row) * (height + between)
    bounds = {part: [bottom, bottom + height] for part in ranges}
    if len(ranges) == 2:
        bounds = {True: [bottom + 0.36 * height, bottom + height], False: [bottom, bottom + 0.28 * height]}
    titles = {True: ACCURACY, False: "not at full<br>budget, %" if len(ranges) == 2 else "not at full budget, %"}
    names = {}
    for place, (part, limits) in enumerate(ranges.items()):
        number = index * len(ranges) + place + 1
        names[part] = {"xaxis": f"x{index + 1}", "yaxis": f"y{number}"}
        figure.update_layout({f"yaxis{number}": {
            "domain": [rounded(bound) for bound in bounds[part]], "anchor": f"x{index + 1}", "range": limits,
            "showticklabels": column == 0, "title": {"text": titles[part] if column == 0 else ""}, "nticks": 6}})
    figure.update_layout({f"xaxis{index + 1}": {
        "domain": [rounded(left), rounded(min(1, left + width))], "anchor": f"y{number}",
        "title": {"text": panel.title}, **panel.axis}})
    return names


def _draw_points(figure: go.Figure, study: StudyFiles, panel: Panel, axes: dict[bool, dict[str, str]],
                 floors: dict[bool, float]) -> None:
    for arm in SEARCH_STAGES:
        mine = [point for point in panel.points if point.trial["stage"] == arm]
        leader = _leader(study, arm)[0]
        for state in reversed(STATES):
            colour = FAILED if state == "failed" else faint(COLOURS[arm], 0.85 if state == "complete" else 0.5)
            _draw(figure, study, [point for point in mine if point.trial["ended"] == state], axes, floors,
                  {"symbol": MARKERS[state], "size": 8, "color": colour, "line": {"width": 1.4, "color": colour}},
                  group=arm if state == "complete" else state)
        _draw(figure, study, [point for point in mine if point.trial["origin"] == "default"], axes, floors,
              {"symbol": "diamond-open", "size": 17, "color": COLOURS[arm], "line": {"width": 2}}, group="default")
        _draw(figure, study, [point for point in mine if point.trial["trial"] == leader], axes, floors,
              {"symbol": "star", "size": 15, "color": COLOURS[arm], "line": {"width": 0.8, "color": "white"}},
              group="leader")


def _draw(figure: go.Figure, study: StudyFiles, points: list[Point], axes: dict[bool, dict[str, str]],
          floors: dict[bool, float], marker: dict[str, Any], group: str) -> None:
    """Draw points that look alike. One without any accuracy stands on the floor of its part; its hover text says so."""
    for part, names in axes.items():
        mine = [point for point in points if point.complete == part]
        if mine:
            figure.add_scatter(
                x=[point.x for point in mine], mode="markers", marker=marker, legendgroup=group, showlegend=False,
                y=[floors[part] if point.percent is None else point.percent for point in mine], cliponaxis=False,
                hovertext=[f"{ARMS[point.trial['stage']]} {_about(study, point.trial)}<br>{_fate(point.trial)}"
                           for point in mine], hovertemplate="%{hovertext}<extra></extra>", **names)


def _draw_best_so_far(figure: go.Figure, panel: Panel, axes: dict[bool, dict[str, str]]) -> None:
    complete = [point for point in panel.points if point.complete and point.percent is not None]
    if not complete:
        return
    best = list(accumulate((point.percent for point in complete), max))
    figure.add_scatter(
        x=[*(point.x for point in complete), max(point.x for point in panel.points)], y=[*best, best[-1]], mode="lines",
        line={"shape": "hv", "width": 1.5, "color": COLOURS[complete[0].trial["stage"]]}, hoverinfo="skip",
        legendgroup="best", showlegend=False, **axes[True])


def _draw_legend(figure: go.Figure, study: StudyFiles, points: list[Point], best_so_far: bool) -> None:
    """Entries that hold for all panels; what is true of both arms is grey."""
    entries = [(arm, f"{ARMS[arm]}, full budget", {"symbol": "circle", "color": COLOURS[arm]}, "markers")
               for arm in SEARCH_STAGES if any(point.complete and point.trial["stage"] == arm for point in points)]
    entries += [(state, title, {"symbol": MARKERS[state], "color": FAILED if state == "failed" else NEUTRAL}, "markers")
                for state, title in STATES.items()
                if state != "complete" and any(point.trial["ended"] == state for point in points)]
    if any(point.trial["origin"] == "default" for point in points):
        entries.append(("default", "default point", {"symbol": "diamond-open", "color": NEUTRAL}, "markers"))
    stages = {point.trial["stage"] for point in points}
    leaders = {_leader(study, stage)[1].split(":")[0] for stage in stages} - {""}
    if leaders:
        entries.append(("leader", " or ".join(sorted(leaders, reverse=True)), {"symbol": "star", "color": NEUTRAL},
                        "markers"))
    if best_so_far and any(point.complete for point in points):
        entries.append(("best", "best so far at full budget", {"color": NEUTRAL}, "lines"))
    for group, title, marker, mode in entries:
        figure.add_scatter(x=[None], y=[None], mode=mode, name=title, legendgroup=group, showlegend=True,
                           marker={"size": 10, "line": {"width": 1.6, "color": marker["color"]}, **marker},
                           line={"color": NEUTRAL})


def _position(trial: dict[str, Any], name: str, dimension: dict[str, Any]) -> float:
    """Where a trial stands on a parameter's axis; those of one choice are spread, lest they hide each other."""
    if "choice" not in dimension:
        return rounded(trial[name])
    golden = (math.sqrt(5) - 1) / 2
    return dimension["choice"].index(trial[name]) + round(0.5 * (trial["trial"] * golden % 1 - 0.5), 3)


def _whole_step(last: float) -> int:
    """A step between ticks that are trial numbers: at most about ten of them."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6) if last / step <= 10)


def parallel_coordinates(study: StudyFiles, short: bool = False) -> go.Figure | None:
    """Every trial of the distillation as a line over its parameters, up to its last validation accuracy in percent.

    The best are told apart by width as well as by shade, and the stopped by their dash. `short` names the axes by their
    symbols.
    """
    trials = [trial for trial in _trials(study, "distill") if trial["ended"] in ("complete", "stopped")
              and trial["last_validation_accuracy"] is not None]
    searched = study.config.get("search", {})
    names = [name for name in study.parameter_names if isinstance(searched.get(name), dict)]
    if len(trials) < 2 or not names:
        return None
    complete = sorted((trial for trial in trials if trial["ended"] == "complete"),
                      key=lambda trial: -trial["last_validation_accuracy"])
    best = min(MOST_BEST, math.ceil(len(complete) / 3))
    groups = [("stopped early", [trial for trial in trials if trial["ended"] == "stopped"], 0.5, 1, "dot"),
              ("others at the full budget", complete[best:], 0.6, 1.3, "dash"),
              (f"the best {best}" if best > 1 else "the best", complete[:best], 1, 3, "solid")]
    figure = blank(430, showlegend=True, legend={"traceorder": "reversed"})
    percents = [100 * trial["last_validation_accuracy"] for trial in trials]
    bounds = min(percents), max(percents)
    for title, members, opacity, width, dash in groups:
        colour = NEUTRAL if title == "stopped early" else COLOURS["distill"]
        for index, trial in enumerate(members):
            figure.add_scatter(
                x=list(range(len(names) + 1)), mode="lines", name=title, legendgroup=title, showlegend=not index,
                y=[*(_height(trial[name], searched[name]) for name in names),
                   _share_between(100 * trial["last_validation_accuracy"], bounds)],
                line={"color": faint(colour, _crowded(opacity, len(members))), "width": width, "dash": dash},
                meta=_about(study, trial),
                hovertemplate="%{meta}<br>" + _fate(trial) + "<extra></extra>")
    titles = [SYMBOLS.get(name, name) if short else TITLES.get(name, name).split(",")[0] for name in names]
    axes = [*((title.replace("_", " "), _ends(searched[name])) for title, name in zip(titles, names, strict=True)),
            ("result" if short else "last accuracy", tuple(f"{bound:.1f} %" for bound in bounds))]
    for place, (title, (low, high)) in enumerate(axes):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": NEUTRAL, "width": 1.5})
        figure.add_annotation(x=place, y=1.02, yanchor="bottom", text=high, showarrow=False)
        figure.add_annotation(x=place, y=-0.02, yanchor="top", text=f"{low}<br><b>{title}</b>", showarrow=False)
    figure.update_xaxes(visible=False, range=[-0.35, len(names) + 0.35])
    figure.update_yaxes(visible=False, range=[-0.2, 1.12])
    return figure


def _crowded(opacity: float, lines: int) -> float:
    """The opacity of lines of which there are many, so that one still sees where they are dense."""
    return rounded(opacity * min(1.0, math.sqrt(30 / max(lines, 1))))


def _height(value: Any, dimension: dict[str, Any]) -> float:
    if "choice" in dimension:
        return rounded((dimension["choice"].index(value) + 0.5) / len(dimension["choice"]))
    low, high = dimension.get("log") or dimension["linear"]
    if "log" in dimension:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return _share_between(value, (low, high))


def _share_between(value: float, bounds: tuple[float, float]) -> float:
    return rounded((value - bounds[0]) / (bounds[1] - bounds[0])) if bounds[1] > bounds[0] else 0.5


def _ends(dimension: dict[str, Any]) -> tuple[str, str]:
    values = dimension.get("log") or dimension.get("linear") or [dimension["choice"][0], dimension["choice"][-1]]
    return show(values[0]), show(values[-1])


def budget(spent: pd.DataFrame) -> go.Figure | None:
    """Training time per stage, by how its trials ended, and beside it what early stopping saved: `StudyFiles.spent`."""
    if spent.empty:
        return None
    scale, unit = next((scale, unit) for scale, unit in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
                       if scale == 1 or spent["seconds"].sum() >= 3 * scale)
    stages = [stage for stage in STAGES if stage in set(spent["stage"])][::-1]
    figure = blank(120 + 44 * len(stages), showlegend=True, barmode="stack", legend={"traceorder": "normal"})
    kinds = {"complete": ("full budget", 0.9, ""), "stopped": ("stopped early", 0.45, ""),
             "failed": ("failed", 0.3, "x"), "running": ("running", 0.3, "."),
             "saved": ("saved by early stopping (not spent)", 0.0, "/")}
    for kind, (title, opacity, pattern) in kinds.items():
        mine = spent[spent["kind"] == kind].set_index("stage").reindex(stages).dropna(subset=["seconds"])
        if mine.empty:
            continue
        colour = NEUTRAL if kind == "saved" else FAILED if kind == "failed" else COLOURS["distill"]
        figure.add_bar(
            orientation="h", y=[stage.replace("_", " ") for stage in mine.index], name=title,
            x=[rounded(seconds / scale) for seconds in mine["seconds"]],
            marker={"color": faint(colour, opacity), "line": {"color": colour, "width": 1},
                    "pattern": {"shape": pattern, "fgcolor": colour, "size": 6}},
            customdata=mine[["trials", "epochs"]].astype(int).to_numpy().tolist(),
            hovertemplate=f"%{{y}}, {title}: %{{x}} {unit}<br>%{{customdata[0]}} trials, %{{customdata[1]}} epochs"
                          "<extra></extra>")
    figure.update_xaxes(title=f"{unit} of training,<br>summed over trials", rangemode="tozero")
    figure.update_yaxes(showgrid=False, ticks="", categoryorder="array",
                        categoryarray=[stage.replace("_", " ") for stage in stages])
    return figure
