"""Where the training time went."""

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, FAILED, NEUTRAL, blank, faint, rounded
from kdstudy.analysis.stage_names import in_order

KINDS = {  # name, opacity, pattern
    "complete": ("full budget", 0.9, ""), "stopped": ("stopped early", 0.45, ""), "failed": ("failed", 0.3, "x"),
    "running": ("running", 0.3, "."), "discarded": ("after the stop, discarded", 0.2, "+"),
    "saved": ("saved by early stopping (not spent)", 0.0, "/")}
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


def training_time(spent: pd.DataFrame) -> go.Figure | None:
    """Training time per stage, by how its trials ended, and beside it what early stopping saved: `StudyFiles.spent`."""
    if spent.empty:
        return None
    scale, unit = next((scale, unit) for scale, unit in UNITS if scale == 1 or spent["seconds"].sum() >= 3 * scale)
    stages = in_order(dict.fromkeys(spent["stage"]))[::-1]
    figure = blank(120 + 44 * len(stages), showlegend=True, barmode="stack", legend={"traceorder": "normal"})
    for kind in KINDS:
        mine = spent[spent["kind"] == kind].set_index("stage").reindex(stages).dropna(subset=["seconds"])
        if not mine.empty:
            _draw_bars(figure, kind, mine, scale, unit)
    figure.update_xaxes(title=f"{unit} of training,<br>summed over trials", rangemode="tozero")
    figure.update_yaxes(showgrid=False, ticks="", categoryorder="array",
                        categoryarray=[stage.replace("_", " ") for stage in stages])
    return figure


def _draw_bars(figure: go.Figure, kind: str, mine: pd.DataFrame, scale: int, unit: str) -> None:
    title, opacity, pattern = KINDS[kind]
    colour = NEUTRAL if kind == "saved" else FAILED if kind == "failed" else COLOURS["distill"]
    figure.add_bar(
        orientation="h", y=[stage.replace("_", " ") for stage in mine.index], name=title,
        x=[rounded(seconds / scale) for seconds in mine["seconds"]],
        marker={"color": faint(colour, opacity), "line": {"color": colour, "width": 1},
                "pattern": {"shape": pattern, "fgcolor": colour, "size": 6}},
        customdata=mine[["trials", "epochs"]].astype(int).to_numpy().tolist(),
        hovertemplate=f"%{{y}}, {title}: %{{x}} {unit}<br>%{{customdata[0]}} trials, %{{customdata[1]}} epochs"
                      "<extra></extra>")
