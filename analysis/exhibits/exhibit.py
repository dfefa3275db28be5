"""A figure with the words around it."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Exhibit:
    """A figure with its heading and caption.

    absent: the sentence that replaces a figure that cannot be drawn yet. narrow: the figure for phones, where it
    differs. notes: (kind, sentence) above the caption; a kind is `finding`, `note` or `warning`. nav: its name in the
    page's list of contents; empty where it is not listed. group: neighbours of one group stand side by side where there
    is room.
    """

    name: str
    heading: str
    caption: str
    absent: str
    figure: go.Figure | None
    narrow: go.Figure | None = None
    notes: tuple[tuple[str, str], ...] = ()
    nav: str = ""
    group: str = ""
