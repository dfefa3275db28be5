"""The report's figures as files of their own, for a paper or a talk. Needs kaleido, and Chromium or Chrome."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.sections import Exhibit

KINDS = ("svg", "png")
WIDTH, SCALE = 1100, 2  # pixels; a PNG has SCALE times as many, each way
TITLE_HEIGHT = 44


class ImagesUnavailable(ValueError):  # noqa: N818
    """What draws the images is not installed; the message says what to install."""


def write_images(exhibits: Iterable[Exhibit], folder: Path, kind: str) -> list[Path]:
    """Write each figure as NAME.svg or NAME.png, titled, on white. Returns the paths, in the exhibits' order.

    The same figure gives the same bytes with the same browser and fonts. Raises ImagesUnavailable without kaleido or
    a browser that starts.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of image to write; there are {' and '.join(KINDS)}")
    drawn = {exhibit.name: _titled(exhibit) for exhibit in exhibits if exhibit.figure}
    if not drawn:
        return []
    # Drawn elsewhere on the same disk, so that each is put in its place whole, and none where the drawing fails.
    with tempfile.TemporaryDirectory(prefix=".images-", dir=folder.parent) as partial:
        orders = {name: _order(figure, Path(partial) / f"{name}.{kind}") for name, figure in drawn.items()}
        _render(list(orders.values()))
        folder.mkdir(exist_ok=True)
        return [_put(order["path"], name, folder) for name, order in orders.items()]


def _titled(exhibit: Exhibit) -> go.Figure:
    """A copy of the figure with its heading above it, where the page would say it."""
    figure = go.Figure(exhibit.figure)
    for index, trace in enumerate(figure.data):
        trace.uid = f"{index}"  # else drawn at random
    if exhibit.heading:
        _add_title(figure, exhibit.heading)
    return figure.update_layout(paper_bgcolor="white", margin={"l": 24, "r": 24, "b": 20})


def _add_title(figure: go.Figure, text: str) -> None:
    """Make room for a title on top. Where there is a legend it is the legend's: any other may lie across that."""
    title, layout = {"text": f"<b>{text}</b>", "font": {"size": 18}}, figure.layout
    if layout.showlegend:
        figure.update_layout(legend={"title": title | {"side": "top"}})
    else:
        top = layout.margin.t or layout.template.layout.margin.t
        figure.update_layout(margin={"t": top + TITLE_HEIGHT}, title=title | {
            "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top",
            "pad": {"l": 8, "t": 10}})
    figure.update_layout(height=layout.height + TITLE_HEIGHT)


def _order(figure: go.Figure, path: Path) -> dict[str, Any]:
    options = {"width": WIDTH, "height": figure.layout.height, "scale": SCALE if path.suffix == ".png" else 1}
    return {"fig": figure, "path": path, "opts": options}


def _render(orders: list[dict[str, Any]]) -> None:
    """Draw in one browser, started once."""
    try:
        from kaleido import write_fig_from_object_sync
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise ImagesUnavailable("images need kaleido 1 or newer: pip install 'kdstudy[images]'") from None
    try:
        # Without MathJax: it would be fetched from the network, and no figure has a formula.
        write_fig_from_object_sync(orders, cancel_on_error=True, kopts={"mathjax": False})
    except ChromeNotFoundError:
        raise ImagesUnavailable("images need Chromium or Chrome: install one, or name it in BROWSER_PATH"
                                f"{_chosen_browser()}") from None
    except (BrowserClosedError, BrowserFailedError):
        raise ImagesUnavailable("images need a Chromium or Chrome that starts: install another one, or name it in "
                                f"BROWSER_PATH{_chosen_browser()}") from None


def _chosen_browser() -> str:
    path = os.environ.get("BROWSER_PATH")
    return f" (now {path})" if path else ""


def _put(drawn: Path, name: str, folder: Path) -> Path:
    if drawn.suffix == ".svg":
        drawn.write_text(_with_own_ids(drawn.read_text(encoding="utf-8"), name), encoding="utf-8")
    return drawn.replace(folder / drawn.name)


def _with_own_ids(svg: str, name: str) -> str:
    """The SVG with its parts called after the figure: plotly.js draws six random digits for them."""
    random = re.search('id="defs-([0-9a-f]+)"', svg)
    return re.sub(rf"(?<=[A-Za-z-]){random[1]}", name, svg) if random else svg
