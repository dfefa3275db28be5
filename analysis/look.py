"""The look that all figures share: colours, axes, numbers."""

import html
import math
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.results import ARMS as ARMS

# From the palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {"teacher": "#009E73", "baseline": "#D55E00", "distill": "#0072B2"}
# Brighter relatives, which the page puts in their place for readers who prefer a dark one.
ON_DARK = {"teacher": "#2FC69B", "baseline": "#E69F00", "distill": "#56B4E9"}
FAILED = "#CC79A7"
NEUTRAL = "#8a8a8a"
INK = "#1f2328"
ORIGINS = {"default": "default point", "sobol": "Sobol point", "tpe": "proposed by TPE"}
SYMBOLS = {"temperature": "T", "alpha": "α"}
TITLES = {"temperature": "temperature T", "alpha": "α, weight of the soft loss", "lr": "learning rate",
          "weight_decay": "weight decay", "warmup": "warm-up, share of the epochs", "batch_size": "batch size"}
ACCURACY = "validation accuracy, %"


def template() -> go.layout.Template:
    """The look that all figures share; on a dark page the font and the colours change, see ON_DARK."""
    axis = {"showline": True, "linecolor": NEUTRAL, "gridcolor": "rgba(138,138,138,0.22)", "zeroline": False,
            "ticks": "outside", "tickcolor": NEUTRAL, "ticklen": 4, "automargin": True,
            "title": {"standoff": 8, "font": {"size": 14}}}
    return go.layout.Template(layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white", "plot_bgcolor": "rgba(0,0,0,0)", "xaxis": axis, "yaxis": axis,
        "margin": {"l": 8, "r": 12, "t": 4, "b": 8}, "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "bordercolor": NEUTRAL, "font": {"color": INK}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    })


def blank(height: int, **layout: Any) -> go.Figure:
    return go.Figure(layout={"template": template(), "height": height, "showlegend": False, **layout})


def rounded(value: float) -> float:
    """Four significant digits: more cannot be seen, and would only weigh on the page."""
    return float(f"{value:.4g}")


def show(value: Any) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def faint(colour: str, opacity: float) -> str:
    return f"rgba({channels(colour)},{opacity})"


def channels(colour: str) -> str:
    """#ff8000 as 255,128,0."""
    return ",".join(str(int(colour[start:start + 2], 16)) for start in (1, 3, 5))


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def parameter_axis(dimension: dict[str, Any]) -> dict[str, Any]:
    """A plotly axis for a searched parameter, `{"log": [a, b]}`, `{"linear": [a, b]}` or `{"choice": [...]}`."""
    if "choice" in dimension:
        shown = [show(value) for value in dimension["choice"]]
        return {"range": [-0.5, len(shown) - 0.5], "tickmode": "array", "tickvals": list(range(len(shown))),
                "ticktext": shown, "showgrid": False}
    low, high = dimension.get("log") or dimension["linear"]
    if "linear" in dimension:
        margin = 0.05 * (high - low)
        return {"range": [low - margin, high + margin], "nticks": 6, "exponentformat": "power"}
    ends = math.log10(low), math.log10(high)
    margin = 0.05 * (ends[1] - ends[0])
    ticks = log_ticks(low, high)
    return {"type": "log", "range": [ends[0] - margin, ends[1] + margin], "tickmode": "array", "tickvals": ticks,
            "ticktext": [_plain(tick, exponents=low < 0.02) for tick in ticks]}


def log_ticks(low: float, high: float) -> list[float]:
    """Round ticks between two bounds: powers of 2 for temperatures and the like, else 1 and 3 of each decade."""
    if low >= 0.25 and high <= 128:
        ticks = [2.0**power for power in range(-2, 8)]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in ((1,) if len(decades) > 5 else (1, 3))]
    inside = [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]
    return inside if len(inside) > 1 else [low, high]


def _plain(value: float, exponents: bool) -> str:
    """16 and 0.25, or 3e-4 and 1e-2: the way a study file writes it."""
    if not exponents or 1 <= value < 10000:
        return f"{value:g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"
