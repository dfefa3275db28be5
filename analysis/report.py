"""One HTML page, and the same results as JSON, Markdown and CSV: readable offline, also while the study still runs."""

import html
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from kdstudy.analysis import look, sections, tables
from kdstudy.analysis.results import StudyFiles
from kdstudy.analysis.sections import Exhibit, Findings
from kdstudy.analysis.trials_table import trials_section

# Nothing may be loaded from anywhere, whatever a study's texts say.
SECURITY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def build(folder: Path) -> bool:
    """Write a study's results to its `results/` folder, in percent and percentage points. Returns whether any changed.

    The same record gives the same bytes. Raises ValueError where a stage's files do not fit together.
    """
    study = StudyFiles(folder)
    outcome, found = tables.results(study), Findings.of(study)
    contents = {
        "results.json": _json(outcome),
        "results.md": tables.markdown(outcome),
        "trials.csv": study.trials.to_csv(index=False, lineterminator="\n"),
        "curves.csv": study.curves.to_csv(index=False, lineterminator="\n"),
        "sensitivity.json": _json(found.sensitivity),
        "classes.csv": found.classes.to_csv(index=False, lineterminator="\n"),
        "report.html": page(study, outcome, found),
    }
    results = folder / "results"
    results.mkdir(exist_ok=True)
    return any([_write(results / name, content) for name, content in contents.items()])


def exhibits(folder: Path) -> list[Exhibit]:
    """A study's figures, as the page shows them."""
    study = StudyFiles(folder)
    return sections.exhibits(study, tables.results(study), Findings.of(study))


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _write(path: Path, content: str) -> bool:
    """Replace the file in one step, if its content changes. Returns whether it did."""
    encoded = content.encode("utf-8")
    if path.exists() and path.read_bytes() == encoded:
        return False
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(encoded)
    os.replace(partial, path)
    return True


def page(study: StudyFiles, outcome: dict[str, Any], found: Findings) -> str:
    """The study as one HTML page that needs no network: verdict, table, figures, all trials, methods, settings."""
    name, about = html.escape(outcome["study"]), html.escape(study.config.get("about", ""))
    gains, *exhibits = sections.exhibits(study, outcome, found)
    body = [
        f"<header><p class=kind>Hyperparameter study of knowledge distillation</p><h1>{name}</h1>"
        f"<p>{about}</p></header>", _contents(exhibits),
        f"<section class=verdict><p class=answer>{html.escape(outcome['verdict'])}</p>",
        f"<p class=note>{gains.caption}</p>{_plot(gains)}" if gains.figure else "", _cards(outcome, found),
        f"<p class=scope>{html.escape(outcome['scope'])}</p>{_progress(study)}</section>",
        f"<section id=s-results><h2>Results</h2>{_table(outcome)}</section>",
        *sections_of(exhibits), trials_section(study),
        f"<section id=s-methods><h2>Methods and caveats</h2>{METHODS}</section>",
        f"<section><h2>Settings</h2><details><summary>study.toml</summary><pre>{_settings(study)}</pre></details></section>",
    ]
    return document(f"{name}: does distillation help?", body, [gains, *exhibits])


def document(title: str, body: list[str], exhibits: Iterable[Exhibit]) -> str:
    """A whole page: plotly.js once, the figures' data, and what draws them."""
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_own_file('page.css')}</style>",
        "</head>\n<body>\n<main>", *body, "</main>",
        f"<script>{get_plotlyjs()}</script>",  # here, so that the text can be read while it is parsed
        f'<script type="application/json" id="figures">{_figure_data(exhibits)}</script>',
        f"<script>{_own_file('page.js')}</script>\n</body>\n</html>\n",
    ])


def _own_file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _section(exhibit: Exhibit) -> str:
    notes = "".join(f"<p class={kind}>{html.escape(text)}</p>" for kind, text in exhibit.notes)
    content = f"<p>{html.escape(exhibit.caption)}</p>{_plot(exhibit)}" if exhibit.figure else _absent(exhibit)
    return f"<section id=s-{exhibit.name}><h2>{html.escape(exhibit.heading)}</h2>{notes}{content}</section>"


def _absent(exhibit: Exhibit) -> str:
    """The sentence in a figure's place, unless a note has said it already."""
    said = any(text == exhibit.absent for _, text in exhibit.notes)
    return "" if said else f"<p>{html.escape(exhibit.absent)}</p>"


def sections_of(exhibits: list[Exhibit]) -> list[str]:
    """The figures as HTML sections; neighbours of one group stand side by side."""
    groups = itertools.groupby(exhibits, key=lambda exhibit: exhibit.group or exhibit.name)
    return [f"<div class=pair>{''.join(parts)}</div>" if len(parts) > 1 else parts[0]
            for _, members in groups if (parts := [_section(exhibit) for exhibit in members])]


def _plot(exhibit: Exhibit) -> str:
    return (f'<div class=plot id="{exhibit.name}"><noscript>This figure needs JavaScript.</noscript></div>'
            f'<p class=data><a href="#s-{exhibit.name}" data-figure="{exhibit.name}" download="{exhibit.name}.csv">'
            "data (CSV)</a></p>")


def _contents(exhibits: list[Exhibit]) -> str:
    shown = [("s-results", "Results"), *((f"s-{exhibit.name}", exhibit.nav) for exhibit in exhibits
                                         if exhibit.nav and exhibit.figure),
             ("s-trials", "All trials"), ("s-methods", "Methods")]
    return "<nav>" + "".join(f'<a href="#{target}">{html.escape(name)}</a>' for target, name in shown) + "</nav>"


def _cards(outcome: dict[str, Any], found: Findings) -> str:
    cards = "".join(f"<div class=card><h3>{html.escape(card.title)}</h3><p class=figure>{html.escape(card.figure)}</p>"
                    f"<p>{html.escape(card.text)}</p></div>" for card in sections.cards(outcome, found.calibration))
    return f"<div class=cards>{cards}</div>" if cards else ""


def _figure_data(exhibits: Iterable[Exhibit]) -> str:
    """The figures as JSON that no text in it can break out of; the template they share is in it once."""
    shown = []
    for exhibit in exhibits:
        if exhibit.figure:
            wide = _without_template(exhibit.figure)
            narrow = _without_template(exhibit.narrow or exhibit.figure)
            if narrow["data"] == wide["data"]:
                del narrow["data"]
            shown.append({"name": exhibit.name, "wide": wide, "narrow": narrow})
    on_dark = [pair for arm, colour in look.COLOURS.items() for pair in _recolouring(colour, look.ON_DARK[arm])]
    content = {"template": look.template().to_plotly_json(), "onDark": on_dark, "figures": shown}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _without_template(figure: go.Figure) -> dict[str, Any]:
    content = json.loads(figure.to_json())
    layout = {key: value for key, value in content["layout"].items() if key != "template"}
    return {"data": content["data"], "layout": layout}


def _recolouring(colour: str, other: str) -> list[tuple[str, str]]:
    return [(colour, other), (f"rgba({look.channels(colour)},", f"rgba({look.channels(other)},")]


def _progress(study: StudyFiles) -> str:
    """One line on how far a study is that is not finished."""
    states = {stage: "done" if study.done(stage) else "under way" if study.stage(stage) else "to come"
              for stage in study.planned}
    if set(states.values()) == {"done"}:
        return ""
    return "<p class=progress>" + " · ".join(
        f"{stage.replace('_', ' ')}: {state}" for stage, state in states.items()) + "</p>"


def _table(outcome: dict[str, Any]) -> str:
    if not outcome["rows"]:
        return "<p>No stage that the table needs is done yet.</p>"
    head = "".join(_cell("th", column, column) for column in tables.COLUMNS)
    rows = "\n".join(_row(row) for row in outcome["rows"])
    return (f"<div class=scroll><table class=results><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
            "</div>\n"
            "<p class=note>“Best validation” is of the search that chose the row or its finalists, hence optimistic. "
            "“Only … tuned” has a search’s best values of what the baseline tunes too, read off the fitted surface. "
            "Test accuracy is the mean over the seeds ± their standard deviation, of models that were retrained on "
            f"fresh seeds.</p>\n<p class=note>{html.escape(tables.wall_time(outcome))}</p>")


def _row(row: dict[str, Any]) -> str:
    main = (row["arm"], row["configuration"]) == ("distilled", "tuned")
    texts = zip(tables.COLUMNS, tables.cells(row), strict=True)
    return f"<tr{' class=main' if main else ''}>{''.join(_cell('td', column, text) for column, text in texts)}</tr>"


def _cell(tag: str, column: str, text: str) -> str:
    label = f' data-label="{html.escape(column)}"' if tag == "td" and text else ""
    return f"<{tag}{' class=number' if column in tables.NUMERIC else ''}{label}>{html.escape(text)}</{tag}>"


def _settings(study: StudyFiles) -> str:
    return html.escape((study.folder / "study.toml").read_text(encoding="utf-8"))


METHODS = """<ul>
<li><b>Loss.</b> Both arms train the same student with the same code and schedule. Distillation minimises
(1&nbsp;−&nbsp;α)&nbsp;· cross entropy + α&nbsp;·&nbsp;T²&nbsp;· KL(teacher&nbsp;‖&nbsp;student), both softened by the
temperature T; the baseline is α = 0.</li>
<li><b>Selection.</b> Winners are chosen by validation accuracy after the last epoch, among trials at the full budget;
where there are finalists, the best of these run again on fresh seeds and the best mean wins. The test images play no
part: each row of the table is retrained on fresh seeds and tested once, after its last epoch. The default point is
confirmed as it is, whatever the searches find.</li>
<li><b>Gain.</b> Each seed of an arm is paired with the same seed of the tuned baseline. The interval treats seeds and
test images as two crossed samples, for both are; it is never narrower than Student’s paired t over the seeds alone.
With that t alone, simulated studies without any gain found one in up to 12 % of the cases instead of 5 %, and in up
to 29 % where the images vary most, since it takes the test images for all there are. An interval that includes zero
does not say that there is no gain, but that this study does not show one.</li>
<li><b>Sensitivity.</b> Early stopping breaks the usual importances: a stopped trial’s last value says how far it
came, not how good its hyperparameters are. Here one Gaussian process (a constant times an anisotropic Matérn-5/2
kernel over the parameters and the logarithm of the epoch, an effect of each trial, noise; on the logit of accuracy)
is fitted to the reports of all trials and read off at the full budget only. The protected trials, which nobody may
stop, anchor it there; where α has a linear range, the baseline’s trials enter as α = 0. All intervals there are 90 %
and come from draws of the process; leaving out one trial after another checks them.</li>
<li><b>What the gain does not speak of.</b> Other teachers, other splits, another search: each of them was drawn once.
Searches of more trials find better points in both arms.</li>
<li><b>“Gap closed”</b> is the gain as a share of the teacher’s lead over the tuned baseline. It stands only where
that lead is itself significant.</li>
</ul>"""
