"""Whether early epochs predict the end."""

import pandas as pd
import plotly.graph_objects as go

from kdstudy.analysis.figures.style import COLOURS, NEUTRAL, blank, faint, rounded
from kdstudy.analysis.sensitivity.rungs import PREDICTIVE_RANKS
from kdstudy.analysis.study_files import ARMS

SYMBOLS = {"baseline": "square", "distill": "circle"}


def rung_correlations(correlations: pd.DataFrame, last: int) -> go.Figure | None:
    """Rank correlation of each rung with the last epoch, per arm, with the number of trials.

    correlations: of `kdstudy.analysis.sensitivity.rungs`.
    """
    rows = correlations[correlations["later"] == last]
    if rows.empty:
        return None
    figure = blank(330, showlegend=True)
    for arm, mine in rows.groupby("arm", sort=False):
        _draw_arm(figure, arm, mine, last)
    figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=PREDICTIVE_RANKS, y1=PREDICTIVE_RANKS,
                     line={"dash": "dash", "color": NEUTRAL, "width": 1.5}, layer="below")
    figure.update_xaxes(type="category", title="rung")
    figure.update_yaxes(title=f"rank correlation<br>with epoch {last}",
                        range=[min(-0.1, rounded(rows["correlation"].min() - 0.2)), 1.15], nticks=6)
    return figure


def _draw_arm(figure: go.Figure, arm: str, rows: pd.DataFrame, last: int) -> None:
    figure.add_scatter(
        x=[f"epoch {rung}" for rung in rows["rung"]], y=[rounded(value) for value in rows["correlation"]],
        mode="markers+lines+text", name=ARMS[arm], cliponaxis=False, text=[f"n = {count}" for count in rows["trials"]],
        textposition="top center" if arm == "distill" else "bottom center",
        marker={"size": 11, "symbol": SYMBOLS[arm], "color": COLOURS[arm]},
        line={"color": faint(COLOURS[arm], 0.5), "dash": "dot"},
        hovertemplate=f"{ARMS[arm]}, %{{x}}: rank correlation %{{y}} with epoch {last}<extra></extra>")
