"""The HTML document around a report: styles, plotly.js, the figures' data and the script that draws them."""

import html
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures import style

# The page may load nothing, whatever text a study puts into it.
SECURITY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def document(title: str, body: list[str], exhibits: Iterable[Exhibit]) -> str:
    """A whole page: the body's parts, plotly.js once, the figures' data, and the script that draws them."""
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{own_file('page.css')}</style>",
        "</head>\n<body>\n<main>", *body, "</main>",
        f"<script>{get_plotlyjs()}</script>",  # after the text, which can be read while this is parsed
        f'<script type="application/json" id="figures">{_figure_data(exhibits)}</script>',
        f"<script>{own_file('page.js')}</script>\n</body>\n</html>\n",
    ])


def own_file(name: str) -> str:
    """The text of a file in this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def sections_of(exhibits: list[Exhibit]) -> list[str]:
    """The figures as HTML sections; neighbours of one group stand side by side."""
    groups = itertools.groupby(exhibits, key=lambda exhibit: exhibit.group or exhibit.name)
    return [f"<div class=pair>{''.join(parts)}</div>" if len(parts) > 1 else parts[0]
            for _, members in groups if (parts := [_section(exhibit) for exhibit in members])]


def _section(exhibit: Exhibit) -> str:
    notes = "".join(f"<p class={kind}>{html.escape(text)}</p>" for kind, text in exhibit.notes)
    content = (f"<p>{html.escape(exhibit.caption)}</p>{_table(exhibit.table)}{plot(exhibit)}" if exhibit.figure
               else _absent(exhibit))
    return f"<section id=s-{exhibit.name}><h2>{html.escape(exhibit.heading)}</h2>{notes}{content}</section>"


def _table(rows: tuple[tuple[str, ...], ...]) -> str:
    if not rows:
        return ""
    head, *body = ([html.escape(text) for text in row] for row in rows)
    lines = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in body)
    return (f"<div class=trials><table><thead><tr>{''.join(f'<th>{text}</th>' for text in head)}</tr></thead>"
            f"<tbody>{lines}</tbody></table></div>")


def _absent(exhibit: Exhibit) -> str:
    """The sentence that replaces a figure, unless a note has said it already."""
    said = any(text == exhibit.absent for _, text in exhibit.notes)
    return "" if said else f"<p>{html.escape(exhibit.absent)}</p>"


def plot(exhibit: Exhibit) -> str:
    """Where page.js draws the figure, and the link to its numbers."""
    return (f'<div class=plot id="{exhibit.name}"><noscript>This figure needs JavaScript.</noscript></div>'
            f'<p class=data><a href="#s-{exhibit.name}" data-figure="{exhibit.name}" download="{exhibit.name}.csv">'
            "data (CSV)</a></p>")


def _figure_data(exhibits: Iterable[Exhibit]) -> str:
    """The figures as JSON that no text in it can break out of; the template they share is in it once."""
    on_dark = [pair for arm, colour in style.COLOURS.items() for pair in _recolouring(colour, style.ON_DARK[arm])]
    content = {"template": style.template().to_plotly_json(), "onDark": on_dark,
               "figures": [_drawing(exhibit) for exhibit in exhibits if exhibit.figure]}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _drawing(exhibit: Exhibit) -> dict[str, Any]:
    """The figure for wide windows and for phones; the latter's data only where it differs."""
    wide, narrow = _without_template(exhibit.figure), _without_template(exhibit.narrow or exhibit.figure)
    if narrow["data"] == wide["data"]:
        del narrow["data"]
    return {"name": exhibit.name, "wide": wide, "narrow": narrow}


def _without_template(figure: go.Figure) -> dict[str, Any]:
    content = json.loads(figure.to_json())
    layout = {key: value for key, value in content["layout"].items() if key != "template"}
    return {"data": content["data"], "layout": layout}


def _recolouring(colour: str, other: str) -> list[tuple[str, str]]:
    return [(colour, other), (f"rgba({style.channels(colour)},", f"rgba({style.channels(other)},")]
