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
    is room. table: rows of texts above the figure, the first of headings. applies: whether the study has such a
    question at all; where it has not, the page does not mention the figure.
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
    table: tuple[tuple[str, ...], ...] = ()
    applies: bool = True
