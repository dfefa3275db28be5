"""The learning curves of a stage's trials."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.figures.style import ACCURACY, COLOURS, FAILED, NEUTRAL, blank, faint, rounded
from kdstudy.analysis.figures.trials import MARKERS, STATES, about, leader, thinned, trials_of
from kdstudy.analysis.stage_names import kind_of, stage_for
from kdstudy.analysis.study_files import SEARCH_STAGES, StudyFiles

LABEL_GAP = 0.15  # of the epochs between two labelled rungs; with less, labels would overlap on a phone


def learning_curves(study: StudyFiles, stage: str) -> go.Figure | None:
    """Validation accuracy in percent against the epoch, a line per trial of a stage; dotted lines mark the rungs."""
    curves = study.curves[(study.curves["stage"] == stage) & study.curves["validation_accuracy"].notna()]
    if curves.empty:
        return None
    figure = blank(430, showlegend=True, legend={"traceorder": "reversed"})
    _draw_trials(figure, study, stage, dict(list(curves.groupby("trial"))))
    epochs = _epochs(study, stage, curves)
    if stage in SEARCH_STAGES:
        _mark_rungs(figure, study.description.get("rungs", []), epochs)
    figure.update_xaxes(title="epoch", range=[0, 1.02 * epochs])
    figure.update_yaxes(title=ACCURACY)
    return figure


def teacher_curve(study: StudyFiles) -> go.Figure | None:
    """The teacher's validation accuracy in percent against the epoch, a line per learning rate that was tried; of
    several to choose from, that of the study's answer."""
    figure = learning_curves(study, stage_for("teacher", study.teacher))
    return figure.update_layout(height=330) if figure else None


def _draw_trials(figure: go.Figure, study: StudyFiles, stage: str, reports: dict[int, pd.DataFrame]) -> None:
    winner, title = leader(study, stage)
    trials = [trial for trial in trials_of(study, stage) if trial["trial"] in reports]
    # The last line drawn lies on top: the stopped ones first, the winner last.
    trials.sort(key=lambda trial: (trial["trial"] == winner, trial["ended"] == "complete"))
    in_legend: set[str] = set()
    for trial in trials:
        name = title if trial["trial"] == winner else STATES[trial["ended"]]
        line = _line(study, trial, reports[trial["trial"]], name, len(trials))
        figure.add_trace(line.update(showlegend=name not in in_legend))
        in_legend.add(name)


def _line(study: StudyFiles, trial: dict[str, Any], reports: pd.DataFrame, title: str, lines: int) -> go.Scatter:
    ended, leads = trial["ended"], title not in STATES.values()
    colour = COLOURS[kind_of(trial["stage"])]
    if not leads:
        colour = faint(colour, thinned(0.6 if ended == "complete" else 0.5, lines))
    symbol, size = ("star", 14) if leads else (MARKERS[ended], {"stopped": 6, "failed": 9}.get(ended, 0))
    return go.Scatter(
        x=reports["epoch"].tolist(), y=[rounded(100 * value) for value in reports["validation_accuracy"]],
        mode="lines+markers" if size else "lines", name=title if leads else title.split(":")[0],
        line={"color": colour, "width": 3.5 if leads else 1.6 if ended == "complete" else 1,
              "dash": "dot" if ended == "running" else "solid"},
        marker={"symbol": symbol, "size": [0] * (len(reports) - 1) + [size], "opacity": 1,
                "color": FAILED if ended == "failed" else colour, "line": {"width": 0 if leads else 1.2}},
        legendgroup=title, meta=about(study, trial),
        hovertemplate="%{meta}<br>%{y} % at epoch %{x}<extra></extra>")


def _epochs(study: StudyFiles, stage: str, curves: pd.DataFrame) -> int:
    reached = int(curves["epoch"].max())
    return max(reached, study.description.get("epochs", 0)) if stage in SEARCH_STAGES else reached


def _mark_rungs(figure: go.Figure, rungs: list[int], epochs: int) -> None:
    labelled = 2 * epochs
    for rung in reversed(rungs):
        figure.add_shape(type="line", x0=rung, x1=rung, y0=0, y1=1, yref="paper", layer="below",
                         line={"dash": "dot", "width": 1.5, "color": NEUTRAL})
        if labelled - rung >= LABEL_GAP * epochs:
            figure.add_annotation(x=rung, y=1, yref="paper", yanchor="bottom", showarrow=False, font={"size": 11},
                                  text=f"epoch {rung}")
            labelled = rung
    if rungs:
        figure.update_layout(legend={"y": 1.07})
