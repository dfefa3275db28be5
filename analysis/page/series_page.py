"""A series of studies as an HTML page: the sentence, the gains along the series, a table."""

import html
from typing import Any
from urllib.parse import quote

from kdstudy.analysis import tables
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures import series as figures
from kdstudy.analysis.page.document import document, sections_of
from kdstudy.analysis.page.results_table import plain_table


def series_page(content: dict[str, Any]) -> str:
    """The page, complete in one string. content: of series.json."""
    name, shown = html.escape(content["series"]), exhibits(content)
    body = [
        f"<header><p class=kind>A series of knowledge distillation studies over {html.escape(content['setting'])}</p>"
        f"<h1>{name}</h1></header>",
        f"<section class=verdict><p class=headline>{html.escape(content['sentence'])}</p>"
        f"<p>{html.escape(content['ends'])}</p>"
        f"<p class=scope>{html.escape(' '.join(content['caveats']))}</p></section>",
        *sections_of(shown),
        f"<section><h2>The studies</h2>{_table(content)}<p class=note>Test accuracy is the mean over the seeds of the "
        "confirmation ± their standard deviation. The gain is over that study’s own tuned baseline.</p>"
        f"<ul>{_links(content)}</ul></section>",
    ]
    return document(f"{name}: does the gain change?", body, shown)


def exhibits(content: dict[str, Any]) -> list[Exhibit]:
    """The figures with their headings and captions."""
    line = " Dotted: the line whose slope the sentence above is about." if content["slope"] and not content["smoke"] \
        else ""
    absent = "No study of the series is confirmed yet."
    return [
        Exhibit("gain", f"Gain against {content['axis']}",
                "Test accuracy over each study’s own tuned baseline, with 95 % intervals; the axis is logarithmic."
                + line, absent, figures.gains(content), group="series"),
        Exhibit("accuracy", "What it is made of",
                "Test accuracy of the tuned baseline, of the distilled student, both with the standard deviation over "
                "the seeds, and of the teacher (one model).", absent, figures.accuracies(content), group="series"),
    ]


def _table(content: dict[str, Any]) -> str:
    columns = tables.series_columns(content)
    return plain_table(columns, columns[2:], [tables.series_cells(content, member) for member in content["members"]])


def _links(content: dict[str, Any]) -> str:
    """The members' own pages, which lie beside that of the series, and what each says."""
    return "".join(f'<li><a href="../{quote(member["folder"])}/results/report.html">{html.escape(member["folder"])}</a>'
                   f": {html.escape(member['verdict'])}</li>" for member in content["members"])
