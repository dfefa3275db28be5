"""What all figures share: colours, symbols, names, axes and short numbers."""

import html
import math
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.number_text import listed, show_value

# From the palette of Okabe and Ito, whose colours colour-blind readers can tell apart.
COLOURS = {"teacher": "#009E73", "baseline": "#D55E00", "distill": "#0072B2"}
# Brighter shades, which the page uses instead on a dark background.
ON_DARK = {"teacher": "#2FC69B", "baseline": "#E69F00", "distill": "#56B4E9"}
FAILED = "#CC79A7"
NEUTRAL = "#8a8a8a"
INK = "#1f2328"
ORIGINS = {"default": "default point", "sobol": "Sobol point", "tpe": "proposed by TPE"}  # of a trial's parameters
SYMBOLS = {"temperature": "T", "alpha": "α"}
TITLES = {"temperature": "temperature T", "alpha": "α, weight of the soft loss", "lr": "learning rate",
          "weight_decay": "weight decay", "warmup": "warm-up, share of the epochs", "batch_size": "batch size",
          "accumulate": "batches per update", "warmup_epochs": "warm-up, epochs", "min_lr": "minimum learning rate",
          "layer_decay": "layer-wise learning-rate decay", "head_lr": "learning rate of the head, relative",
          "freeze": "frozen epochs", "clip_grad": "gradient clipping, norm", "ema": "EMA decay",
          "drop_path": "drop path rate", "dropout": "dropout rate"}
ACCURACY = "validation accuracy, %"


def template() -> go.layout.Template:
    """Fonts, axes, margins and legend of all figures. On a dark page, page.js changes the font's colour."""
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
    """An empty figure in this style, so many pixels high, without a legend."""
    return go.Figure(layout={"template": template(), "height": height, "showlegend": False, **layout})


def rounded(value: float) -> float:
    """Four significant digits: more cannot be seen, and would make the page larger."""
    return float(f"{value:.4g}")


def show(value: Any) -> str:
    """A parameter's value, escaped for HTML: 1024, 0.0015, adamw."""
    return html.escape(show_value(value))


def faint(colour: str, opacity: float) -> str:
    """#ff8000 at an opacity of 0.5 as rgba(255,128,0,0.5)."""
    return f"rgba({channels(colour)},{opacity})"


def channels(colour: str) -> str:
    """#ff8000 as 255,128,0: red, green and blue."""
    return ",".join(str(int(colour[start:start + 2], 16)) for start in (1, 3, 5))


def label(name: str) -> str:
    """A parameter in a sentence or a short label: T, α, lr, weight decay."""
    return SYMBOLS.get(name, name.replace("_", " "))


def labels(names: list[str]) -> str:
    """Parameters that were searched, in a sentence: T and α. Of a loss, the parameters go without saying."""
    if "loss" in names:
        return "the teacher and the loss with its parameters" if "teacher" in names else "the loss with its parameters"
    return listed([f"the {name}" if name == "teacher" else label(name) for name in names], "and")


def title(name: str) -> str:
    """A parameter as the title of an axis."""
    return TITLES.get(name, name.replace("_", " "))


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
    """Round ticks between two bounds: powers of 2 where both lie in 0.25 to 128, else 1 and 3 times powers of 10."""
    if low >= 0.25 and high <= 128:
        ticks = [2.0**power for power in range(-2, 8)]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in ((1,) if len(decades) > 5 else (1, 3))]
    inside = [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]
    return inside if len(inside) > 1 else [low, high]


def _plain(value: float, exponents: bool) -> str:
    """16 and 0.25, or 3e-4 and 1e-2, as one writes it in a study file."""
    if not exponents or 1 <= value < 10000:
        return f"{value:g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def whiskers(above: list[float], below: list[float], **style: Any) -> dict[str, Any]:
    """Error bars that reach so far above and below each point."""
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **style}


def zero_line() -> dict[str, Any]:
    """Axis settings that make zero stand out."""
    return {"zeroline": True, "zerolinewidth": 2.5, "zerolinecolor": NEUTRAL}


def around(ends: list[float]) -> list[float]:
    """The range of an axis that shows all these values, with a margin."""
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return [min(ends) - margin, max(ends) + margin]


def panel_domains(index: int, count: int, columns: int) -> tuple[list[float], list[float]]:
    """The extents, 0 to 1, of panel `index` of `count` in a grid: from left to right, and from bottom to top."""
    rows, column, row = math.ceil(count / columns), index % columns, index // columns
    across, between = 0.035, 0.2 / rows  # gaps; the lower one holds the title of an x axis
    width, height = (1 - across * (columns - 1)) / columns, (1 - between * (rows - 1)) / rows
    left, bottom = column * (width + across), (rows - 1 - row) * (height + between)
    return [rounded(left), rounded(min(1, left + width))], [bottom, bottom + height]
