"""The trials of both searches as points, against their number and against each parameter.

Trials at the full budget and trials that were stopped have separate panels: their accuracies do not compare.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import (
    ACCURACY,
    COLOURS,
    FAILED,
    NEUTRAL,
    blank,
    faint,
    panel_domains,
    parameter_axis,
    rounded,
    title,
)
from kdstudy.analysis.figures.trials import MARKERS, STATES, about, fate, is_drawable, leader, trials_of
from kdstudy.analysis.study_files import ARMS, SEARCH_STAGES, StudyFiles

PARTS = (True, False)  # of a panel, from the top: trials at the full budget, and the others


@dataclass(frozen=True)
class Point:
    """A trial and its place on the x axis."""

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
    """Points over one x axis: those at the full budget in the upper part, the others in the lower one."""

    title: str
    axis: dict[str, Any]
    points: list[Point]


def optimisation_history(study: StudyFiles, columns: int = 2) -> go.Figure | None:
    """Last validation accuracy in percent against the trial number, a panel per arm in so many columns."""
    panels = []
    for arm in SEARCH_STAGES:
        points = [Point(trial, trial["trial"]) for trial in trials_of(study, arm) if is_drawable(trial)]
        if points:
            last = max(point.x for point in points)
            axis = {"range": [-0.7, last + 0.7], "dtick": _whole_step(last), "tick0": 0}
            panels.append(Panel(f"{ARMS[arm]}: trial number", axis, points))
    return _figure(study, panels, columns, best_so_far=True)


def slices(study: StudyFiles, columns: int = 3) -> go.Figure | None:
    """Last validation accuracy in percent against each searched parameter, a panel per parameter in so many columns."""
    searched = study.config.get("search", {})
    panels = []
    for name in study.parameter_names:
        dimension = searched.get(name)
        if not isinstance(dimension, dict):
            continue
        points = [Point(trial, _position(trial, name, dimension)) for arm in SEARCH_STAGES
                  for trial in trials_of(study, arm) if is_drawable(trial) and trial[name] is not None]
        if points:
            panels.append(Panel(title(name), parameter_axis(dimension), points))
    return _figure(study, panels, columns)


def _whole_step(last: float) -> int:
    """A step between ticks at trial numbers, for at most about ten ticks."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6) if last / step <= 10)


def _position(trial: dict[str, Any], name: str, dimension: dict[str, Any]) -> float:
    """A trial's place on a parameter's axis; trials of the same choice are spread so that all can be seen."""
    if "choice" not in dimension:
        return rounded(trial[name])
    golden = (math.sqrt(5) - 1) / 2
    return dimension["choice"].index(trial[name]) + round(0.5 * (trial["trial"] * golden % 1 - 0.5), 3)


def _figure(study: StudyFiles, panels: list[Panel], columns: int, best_so_far: bool = False) -> go.Figure | None:
    """Panels in a grid; the same part of each has the same range of accuracies, so that they compare."""
    if not panels:
        return None
    points = [point for panel in panels for point in panel.points]
    ranges = {part: _padded(own) for part in PARTS if (own := [point for point in points if point.complete == part])}
    columns = min(columns, len(panels))
    height = 440 * math.ceil(len(panels) / columns)
    figure = blank(height, showlegend=True, legend={"y": 1 + 8 / height})
    for index, panel in enumerate(panels):
        axes = _place_axes(figure, panel, index, len(panels), columns, ranges)
        if best_so_far:
            _draw_best_so_far(figure, panel, axes)
        _draw_points(figure, study, panel, axes, {part: low for part, (low, _) in ranges.items()})
    _draw_legend(figure, study, points, best_so_far)
    return figure


def _padded(points: list[Point]) -> list[float]:
    known = [point.percent for point in points if point.percent is not None] or [0.0, 100.0]
    margin = max(0.12 * (max(known) - min(known)), 0.6)
    return [rounded(min(known) - margin), rounded(max(known) + margin)]


def _place_axes(figure: go.Figure, panel: Panel, index: int, count: int, columns: int,
                ranges: dict[bool, list[float]]) -> dict[bool, dict[str, str]]:
    """Lay out one panel's axes. Returns, for each of its parts, the names under which traces refer to them."""
    across, (bottom, top) = panel_domains(index, count, columns)
    height, both = top - bottom, len(ranges) == 2
    domains = {part: [bottom, bottom + height] for part in ranges}
    if both:
        domains = {True: [bottom + 0.36 * height, bottom + height], False: [bottom, bottom + 0.28 * height]}
    titles = {True: ACCURACY, False: "not at full<br>budget, %" if both else "not at full budget, %"}
    labelled, names = index % columns == 0, {}
    for place, (part, limits) in enumerate(ranges.items()):
        number = index * len(ranges) + place + 1
        names[part] = {"xaxis": f"x{index + 1}", "yaxis": f"y{number}"}
        figure.update_layout({f"yaxis{number}": {
            "domain": [rounded(end) for end in domains[part]], "anchor": f"x{index + 1}", "range": limits,
            "showticklabels": labelled, "title": {"text": titles[part] if labelled else ""}, "nticks": 6}})
    figure.update_layout({f"xaxis{index + 1}": {
        "domain": across, "anchor": f"y{number}", "title": {"text": panel.title}, **panel.axis}})
    return names


def _draw_points(figure: go.Figure, study: StudyFiles, panel: Panel, axes: dict[bool, dict[str, str]],
                 floors: dict[bool, float]) -> None:
    for arm in SEARCH_STAGES:
        mine = [point for point in panel.points if point.trial["stage"] == arm]
        best = leader(study, arm)[0]
        for state in reversed(STATES):
            colour = FAILED if state == "failed" else faint(COLOURS[arm], 0.85 if state == "complete" else 0.5)
            _draw(figure, study, [point for point in mine if point.trial["ended"] == state], axes, floors,
                  {"symbol": MARKERS[state], "size": 8, "color": colour, "line": {"width": 1.4, "color": colour}},
                  group=arm if state == "complete" else state)
        _draw(figure, study, [point for point in mine if point.trial["origin"] == "default"], axes, floors,
              {"symbol": "diamond-open", "size": 17, "color": COLOURS[arm], "line": {"width": 2}}, group="default")
        _draw(figure, study, [point for point in mine if point.trial["trial"] == best], axes, floors,
              {"symbol": "star", "size": 15, "color": COLOURS[arm], "line": {"width": 0.8, "color": "white"}},
              group="leader")


def _draw(figure: go.Figure, study: StudyFiles, points: list[Point], axes: dict[bool, dict[str, str]],
          floors: dict[bool, float], marker: dict[str, Any], group: str) -> None:
    """Draw points that look alike. One without an accuracy is drawn at the bottom; its hover text says so."""
    for part, names in axes.items():
        mine = [point for point in points if point.complete == part]
        if mine:
            figure.add_scatter(
                x=[point.x for point in mine], mode="markers", marker=marker, legendgroup=group, showlegend=False,
                y=[floors[part] if point.percent is None else point.percent for point in mine], cliponaxis=False,
                hovertext=[f"{ARMS[point.trial['stage']]} {about(study, point.trial)}<br>{fate(point.trial)}"
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
    """One legend for all panels; an entry for both arms is grey."""
    entries = [*_arm_entries(points), *_state_entries(points), *_special_entries(study, points)]
    for group, name, marker in entries:
        _add_to_legend(figure, group, name, marker, "markers")
    if best_so_far and any(point.complete for point in points):
        _add_to_legend(figure, "best", "best so far at full budget", {"color": NEUTRAL}, "lines")


def _arm_entries(points: list[Point]) -> list[tuple[str, str, dict[str, str]]]:
    return [(arm, f"{ARMS[arm]}, full budget", {"symbol": "circle", "color": COLOURS[arm]})
            for arm in SEARCH_STAGES if any(point.complete and point.trial["stage"] == arm for point in points)]


def _state_entries(points: list[Point]) -> list[tuple[str, str, dict[str, str]]]:
    return [(state, name, {"symbol": MARKERS[state], "color": FAILED if state == "failed" else NEUTRAL})
            for state, name in STATES.items()
            if state != "complete" and any(point.trial["ended"] == state for point in points)]


def _special_entries(study: StudyFiles, points: list[Point]) -> list[tuple[str, str, dict[str, str]]]:
    entries = []
    if any(point.trial["origin"] == "default" for point in points):
        entries.append(("default", "default point", {"symbol": "diamond-open", "color": NEUTRAL}))
    stages = {point.trial["stage"] for point in points}
    leaders = {leader(study, stage)[1].split(":")[0] for stage in stages} - {""}
    if leaders:
        entries.append(("leader", " or ".join(sorted(leaders, reverse=True)), {"symbol": "star", "color": NEUTRAL}))
    return entries


def _add_to_legend(figure: go.Figure, group: str, name: str, marker: dict[str, str], mode: str) -> None:
    figure.add_scatter(x=[None], y=[None], mode=mode, name=name, legendgroup=group, showlegend=True,
                       marker={"size": 10, "line": {"width": 1.6, "color": marker["color"]}, **marker},
                       line={"color": NEUTRAL})
