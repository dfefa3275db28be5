"""Every trial of the distillation as a line over its parameters (parallel coordinates)."""

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, NEUTRAL, SYMBOLS, TITLES, blank, faint, rounded, show
from kdstudy.analysis.figures.trials import about, fate, thinned, trials_of
from kdstudy.analysis.study_files import StudyFiles

MOST_BEST = 10  # lines that stand out


@dataclass(frozen=True)
class Group:
    """Trials whose lines look alike."""

    name: str
    trials: list[dict[str, Any]]
    opacity: float
    width: float
    dash: str

    @property
    def colour(self) -> str:
        colour = NEUTRAL if self.name == "stopped early" else COLOURS["distill"]
        return faint(colour, thinned(self.opacity, len(self.trials)))


def parallel_coordinates(study: StudyFiles, short: bool = False) -> go.Figure | None:
    """Every trial of the distillation as a line over its parameters, up to its last validation accuracy in percent.

    Line width as well as shade sets the best apart, and dashes the stopped ones. `short` names the axes by symbols.
    """
    trials = [trial for trial in trials_of(study, "distill") if trial["ended"] in ("complete", "stopped")
              and trial["last_validation_accuracy"] is not None]
    searched = {name: dimension for name in study.parameter_names
                if isinstance(dimension := study.config.get("search", {}).get(name), dict)}
    if len(trials) < 2 or not searched:
        return None
    figure = blank(430, showlegend=True, legend={"traceorder": "reversed"})
    percents = [100 * trial["last_validation_accuracy"] for trial in trials]
    bounds = min(percents), max(percents)
    for group in _groups(trials):
        for index, trial in enumerate(group.trials):
            heights = [*(None if trial[name] is None else _height(trial[name], dimension)
                         for name, dimension in searched.items()),
                       _share_between(100 * trial["last_validation_accuracy"], bounds)]
            _draw_line(figure, group, heights, study, trial, in_legend=not index)
    _draw_axes(figure, searched, bounds, short)
    return figure


def _groups(trials: list[dict[str, Any]]) -> list[Group]:
    complete = sorted((trial for trial in trials if trial["ended"] == "complete"),
                      key=lambda trial: -trial["last_validation_accuracy"])
    best = min(MOST_BEST, math.ceil(len(complete) / 3))
    return [Group("stopped early", [trial for trial in trials if trial["ended"] == "stopped"], 0.5, 1, "dot"),
            Group("others at the full budget", complete[best:], 0.6, 1.3, "dash"),
            Group(f"the best {best}" if best > 1 else "the best", complete[:best], 1, 3, "solid")]


def _draw_line(figure: go.Figure, group: Group, heights: list[float | None], study: StudyFiles, trial: dict[str, Any],
               in_legend: bool) -> None:
    figure.add_scatter(
        x=list(range(len(heights))), mode="lines", name=group.name, legendgroup=group.name, showlegend=in_legend,
        y=heights, line={"color": group.colour, "width": group.width, "dash": group.dash}, meta=about(study, trial),
        hovertemplate="%{meta}<br>" + fate(trial) + "<extra></extra>",
        **({"connectgaps": True} if None in heights else {}))


def _draw_axes(figure: go.Figure, searched: dict[str, dict[str, Any]], bounds: tuple[float, float],
               short: bool) -> None:
    axes = [(_axis_title(name, short), _ends(dimension)) for name, dimension in searched.items()]
    axes.append(("result" if short else "last accuracy", tuple(f"{bound:.1f} %" for bound in bounds)))
    for place, (title, (low, high)) in enumerate(axes):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": NEUTRAL, "width": 1.5})
        figure.add_annotation(x=place, y=1.02, yanchor="bottom", text=high, showarrow=False)
        figure.add_annotation(x=place, y=-0.02, yanchor="top", text=f"{low}<br><b>{title}</b>", showarrow=False)
    figure.update_xaxes(visible=False, range=[-0.35, len(searched) + 0.35])
    figure.update_yaxes(visible=False, range=[-0.2, 1.12])


def _axis_title(name: str, short: bool) -> str:
    title = SYMBOLS.get(name, name) if short else TITLES.get(name, name).split(",")[0]
    return title.replace("_", " ")


def _height(value: Any, dimension: dict[str, Any]) -> float:
    """A value's place on its axis, 0 to 1."""
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
