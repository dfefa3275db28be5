"""Accuracy against latency: teacher, tuned baseline and distilled student."""

import math
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.deployment import NAMES, show_latency
from kdstudy.analysis.figures.style import COLOURS, around, blank, rounded, whiskers

# Baseline and student have one latency: each stands beside it, by this share of the axis, so that both can be seen.
BESIDE = {"teacher": 0.0, "baseline": -0.025, "distilled": 0.025}
PLACES = {"teacher": "top right", "baseline": "middle left", "distilled": "middle right"}
LABELS = {"teacher": "teacher", "baseline": "tuned<br>baseline", "distilled": "distilled<br>student"}
COLOUR_OF = {"teacher": "teacher", "baseline": "baseline", "distilled": "distill"}
BATCH = "1"
ROOM = 2.2  # times the longest latency, and a part of the shortest: room for the names


def accuracy_by_latency(content: dict[str, Any]) -> go.Figure | None:
    """Test accuracy, percent, with its interval against the latency of one image, ms, of deployment.json.

    A teacher of unknown latency is a line at its accuracy. None where the student's latency is not known.
    """
    latencies = {arm: content["costs"]["teacher" if arm == "teacher" else "student"]["latency"].get(BATCH)
                 for arm in content["quality"]}
    known = {arm: latency for arm, latency in latencies.items() if latency}
    if not {"baseline", "distilled"} <= set(known):
        return None
    medians = [latency["median"] for latency in known.values()]
    low, high = min(medians) / ROOM, max(medians) * ROOM
    figure = blank(380)
    figure.add_traces([_point(arm, content["quality"][arm], latency, (high / low) ** BESIDE[arm])
                       for arm, latency in known.items()])
    if "teacher" in latencies and "teacher" not in known:
        accuracy = rounded(content["quality"]["teacher"]["accuracy"])
        figure.add_hline(accuracy, line={"color": COLOURS["teacher"], "width": 2, "dash": "dot"},
                         annotation={"text": "teacher, of unknown latency", "font": {"color": COLOURS["teacher"]}})
    figure.update_xaxes(title="latency of one image, ms", type="log", **_axis(low, high))
    ends = [one[end] for one in content["quality"].values() for end in ("low", "high")]
    figure.update_yaxes(title="test accuracy, % (95 % interval)", range=around(ends))
    return figure


def _point(arm: str, quality: dict[str, Any], latency: dict[str, Any], beside: float) -> go.Scatter:
    """beside: how many times its latency it is drawn at."""
    mean, low, high = (rounded(quality[name]) for name in ("accuracy", "low", "high"))
    colour = COLOURS[COLOUR_OF[arm]]
    return go.Scatter(
        x=[rounded(latency["median"] * beside)], y=[mean], mode="markers+text", text=[LABELS[arm]],
        textposition=PLACES[arm], textfont={"color": colour, "size": 13}, cliponaxis=False,
        marker={"color": colour, "size": 12},
        error_y=whiskers([rounded(high - mean)], [rounded(mean - low)], width=7, thickness=2),
        hovertemplate=f"{NAMES[arm]}: {mean:.2f} %<br>95 % interval {low:.2f} to {high:.2f}<br>"
                      f"{show_latency(latency)}<extra></extra>")


def _axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis between two bounds, with ticks at 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in ((1, 2, 5) if high / low < 200 else (1,))]
    ticks = [rounded(tick) for tick in ticks if low <= tick <= high]
    return {"range": [math.log10(low), math.log10(high)], "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks]}
