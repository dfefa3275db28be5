"""The report's figures as SVG or PNG files, for a paper or a talk. Needs kaleido, and Chromium or Chrome."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis.exhibits.exhibit import Exhibit

KINDS = ("svg", "png")
WIDTH, SCALE = 1100, 2  # pixels; a PNG has SCALE times as many in each direction
TITLE_HEIGHT = 44


class ImagesUnavailable(ValueError):  # noqa: N818
    """The packages or the browser that draw images are missing; the message says what to install."""


def write_images(exhibits: Iterable[Exhibit], folder: Path, kind: str) -> list[Path]:
    """Write each figure as NAME.svg or NAME.png, titled, on white. Returns the paths, in the exhibits' order.

    kind: one of KINDS. With the same browser and fonts, the same figure gives the same bytes. Raises ImagesUnavailable
    without kaleido or a browser that starts, ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"images cannot be written as {kind!r}; the kinds are {' and '.join(KINDS)}")
    drawn = {exhibit.name: _titled(exhibit) for exhibit in exhibits if exhibit.figure}
    if not drawn:
        return []
    # Drawn in another folder on the same disk, so that each file appears whole, and none where drawing fails.
    with tempfile.TemporaryDirectory(prefix=".images-", dir=folder.parent) as partial:
        orders = {name: _order(figure, Path(partial) / f"{name}.{kind}") for name, figure in drawn.items()}
        _render(list(orders.values()))
        folder.mkdir(exist_ok=True)
        return [_put(order["path"], name, folder) for name, order in orders.items()]


def _titled(exhibit: Exhibit) -> go.Figure:
    """A copy of the figure with its heading above it, as on the page."""
    figure = go.Figure(exhibit.figure)
    for index, trace in enumerate(figure.data):
        trace.uid = f"{index}"  # plotly.js would choose a random one
    if exhibit.heading:
        _add_title(figure, exhibit.heading)
    return figure.update_layout(paper_bgcolor="white", margin={"l": 24, "r": 24, "b": 20})


def _add_title(figure: go.Figure, text: str) -> None:
    """Make room for a title on top. A legend takes it as its own title, because any other would lie across it."""
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
    """Draw all of them in one browser."""
    try:
        # Here, since kaleido is optional and takes long to import.
        from kaleido import write_fig_from_object_sync
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise ImagesUnavailable("images need kaleido 1 or newer: pip install 'kdstudy[images]'") from None
    if not _chosen_browser_runs():
        raise _no_start()
    try:
        # No figure has a formula, and MathJax would be fetched from the network.
        write_fig_from_object_sync(orders, cancel_on_error=True, kopts={"mathjax": False})
    except ChromeNotFoundError:
        raise ImagesUnavailable("images need Chromium or Chrome: install one, or name it in BROWSER_PATH"
                                f"{_chosen_browser()}") from None
    except (BrowserClosedError, BrowserFailedError):
        raise _no_start() from None


def _no_start() -> ImagesUnavailable:
    return ImagesUnavailable("images need a Chromium or Chrome that starts: install another one, or name it in "
                             f"BROWSER_PATH{_chosen_browser()}")


def _chosen_browser_runs() -> bool:
    """Whether the browser that the user chose, if any, can say its version. Where one ends at once, kaleido may wait
    for it for ever."""
    path = os.environ.get("BROWSER_PATH")
    if not path or not Path(path).is_file():  # kaleido says so if it is missing
        return True
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _chosen_browser() -> str:
    path = os.environ.get("BROWSER_PATH")
    return f" (now {path})" if path else ""


def _put(drawn: Path, name: str, folder: Path) -> Path:
    if drawn.suffix == ".svg":
        drawn.write_text(_with_own_ids(drawn.read_text(encoding="utf-8"), name), encoding="utf-8")
    return drawn.replace(folder / drawn.name)


def _with_own_ids(svg: str, name: str) -> str:
    """The SVG with ids that contain the figure's name, where plotly.js puts six random digits."""
    random = re.search('id="defs-([0-9a-f]+)"', svg)
    return re.sub(rf"(?<=[A-Za-z-]){random[1]}", name, svg) if random else svg
