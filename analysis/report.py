"""One HTML page, and the same results as JSON, Markdown and CSV: readable offline, also while the study still runs."""

import html
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis import figures, look, tables
from analysis.results import STAGES, StudyFiles

# Nothing may be loaded from anywhere, whatever a study's texts say.
SECURITY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Exhibit:
    """A figure with its heading and caption, or the sentence that stands in its place. `narrow` is for phones."""

    name: str
    heading: str
    caption: str
    absent: str
    figure: go.Figure | None
    narrow: go.Figure | None = None


def build(folder: Path) -> bool:
    """Write a study's results to its `results/` folder, in percent and percentage points. Returns whether any changed.

    The same record gives the same bytes. Raises ValueError where a stage's files do not fit together.
    """
    study = StudyFiles(folder)
    outcome = tables.results(study)
    contents = {
        "results.json": json.dumps(outcome, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        "results.md": tables.markdown(outcome),
        "trials.csv": study.trials.to_csv(index=False, lineterminator="\n"),
        "curves.csv": study.curves.to_csv(index=False, lineterminator="\n"),
        "report.html": page(study, outcome),
    }
    results = folder / "results"
    results.mkdir(exist_ok=True)
    return any([_write(results / name, content) for name, content in contents.items()])


def _write(path: Path, content: str) -> bool:
    """Replace the file in one step, if its content changes. Returns whether it did."""
    encoded = content.encode("utf-8")
    if path.exists() and path.read_bytes() == encoded:
        return False
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(encoded)
    os.replace(partial, path)
    return True


def page(study: StudyFiles, outcome: dict[str, Any]) -> str:
    """The study as one HTML page that needs no network: verdict, table, figures, settings."""
    name, about = html.escape(outcome["study"]), html.escape(study.config.get("about", ""))
    gains = Exhibit("gain", "", "", "", figures.gain_intervals(outcome))
    exhibits = _exhibits(study)
    body = [
        f"<header><p class=kind>Hyperparameter study of knowledge distillation</p><h1>{name}</h1>"
        f"<p>{about}</p></header>",
        f"<section class=verdict><p class=answer>{html.escape(outcome['verdict'])}</p>",
        _plot(gains) if gains.figure else "",
        f"<p class=scope>{html.escape(outcome['scope'])}</p>{_progress(study)}</section>",
        f"<section><h2>Results</h2>{_table(outcome)}</section>",
        *map(_section, exhibits),
        f"<section><h2>How to read this</h2>{HOW_TO_READ}</section>",
        f"<section><h2>Settings</h2><details><summary>study.toml</summary><pre>{_settings(study)}</pre></details></section>",
    ]
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name}: does distillation help?</title>\n<style>{STYLE}</style>",
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<main>", *body, "</main>",
        f'<script type="application/json" id="figures">{_figure_data([gains, *exhibits])}</script>',
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ])


def _exhibits(study: StudyFiles) -> list[Exhibit]:
    return [
        _curves(study, "distill", "Learning curves: distillation"),
        _curves(study, "baseline", "Learning curves: baseline"),
        Exhibit("history", "What the searches found, trial by trial",
                "The last validation accuracy of each trial, in the order in which the trials were proposed. Trials "
                "that are not at the full budget stand below, on a scale of their own: their values do not compare.",
                "No search has a trial to show yet.",
                figures.optimisation_history(study), figures.optimisation_history(study, columns=1)),
        Exhibit("slices", "Accuracy against each parameter",
                "Each trial appears once per parameter, so the others vary along with it. The baseline appears where "
                "it searches the same parameter.",
                "No trial of a searched parameter has reported yet.",
                figures.slices(study), figures.slices(study, columns=1)),
        Exhibit("teacher", "Learning curves: teacher", "One line per learning rate that was tried.",
                "The teacher has not reported yet.", figures.teacher_curve(study)),
    ]


def _curves(study: StudyFiles, stage: str, heading: str) -> Exhibit:
    ended = study.trials.loc[study.trials["stage"] == stage, "ended"].value_counts()
    words = {"complete": "at the full budget", "stopped": "stopped early", "running": "running", "failed": "failed"}
    counts = ", ".join(f"{ended[state]} {text}" for state, text in words.items() if state in ended)
    caption = f"{ended.sum()} {'trial' if ended.sum() == 1 else 'trials'}: {counts}."
    if rungs := study.description.get("rungs"):
        caption += (f" Dotted: the {'rung' if len(rungs) == 1 else 'rungs'}, epoch {', '.join(map(str, rungs))}, where "
                    "trials behind the others may be stopped.")
    return Exhibit(f"curves-{stage}", heading, caption, f"No {look.ARMS[stage]} trial has reported yet.",
                   figures.learning_curves(study, stage))


def _section(exhibit: Exhibit) -> str:
    content = f"<p>{exhibit.caption}</p>{_plot(exhibit)}" if exhibit.figure else f"<p>{exhibit.absent}</p>"
    return f"<section><h2>{exhibit.heading}</h2>{content}</section>"


def _plot(exhibit: Exhibit) -> str:
    return f'<div class=plot id="{exhibit.name}"><noscript>This figure needs JavaScript.</noscript></div>'


def _figure_data(exhibits: Iterable[Exhibit]) -> str:
    """The figures as JSON that no text in it can break out of; the template they share is in it once."""
    shown = []
    for exhibit in exhibits:
        if exhibit.figure:
            wide = json.loads(exhibit.figure.to_json())
            narrow = json.loads(exhibit.narrow.to_json()) if exhibit.narrow else wide
            layouts = {name: {key: value for key, value in layout.items() if key != "template"}
                       for name, layout in (("wide", wide["layout"]), ("narrow", narrow["layout"]))}
            shown.append({"name": exhibit.name, "data": wide["data"], **layouts})
    on_dark = [pair for arm, colour in look.COLOURS.items() for pair in _recolouring(colour, look.ON_DARK[arm])]
    content = {"template": look.template().to_plotly_json(), "onDark": on_dark, "figures": shown}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _recolouring(colour: str, other: str) -> list[tuple[str, str]]:
    return [(colour, other), (look.channels(colour), look.channels(other))]


def _progress(study: StudyFiles) -> str:
    """One line on how far a study is that is not finished."""
    states = {stage: "done" if study.done(stage) else "under way" if study.stage(stage) else "to come"
              for stage in STAGES}
    if set(states.values()) == {"done"}:
        return ""
    return "<p class=progress>" + " · ".join(
        f"{stage.replace('_', ' ')}: {state}" for stage, state in states.items()) + "</p>"


def _table(outcome: dict[str, Any]) -> str:
    if not outcome["rows"]:
        return "<p>No stage that the table needs is done yet.</p>"
    head = "".join(_cell("th", column, column) for column in tables.COLUMNS)
    rows = "\n".join(_row(row) for row in outcome["rows"])
    return (f"<div class=scroll><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
            "<p class=note>“Best validation” was used to select the winner among the trials, hence it is optimistic. "
            "Test accuracy is the mean over the seeds ± their standard deviation, of models that were retrained on "
            f"fresh seeds.</p>\n<p class=note>{html.escape(tables.wall_time(outcome))}</p>")


def _row(row: dict[str, Any]) -> str:
    main = (row["arm"], row["configuration"]) == ("distilled", "tuned")
    texts = zip(tables.COLUMNS, tables.cells(row), strict=True)
    return f"<tr{' class=main' if main else ''}>{''.join(_cell('td', column, text) for column, text in texts)}</tr>"


def _cell(tag: str, column: str, text: str) -> str:
    return f"<{tag}{' class=number' if column in tables.NUMERIC else ''}>{html.escape(text)}</{tag}>"


def _settings(study: StudyFiles) -> str:
    return html.escape((study.folder / "study.toml").read_text(encoding="utf-8"))


HOW_TO_READ = """<ul>
<li>Both arms train the same student with the same code and schedule. The loss of distillation is
(1&nbsp;−&nbsp;α)&nbsp;· cross entropy + α&nbsp;·&nbsp;T²&nbsp;· KL(teacher&nbsp;‖&nbsp;student) at temperature T;
the baseline is α = 0.</li>
<li>Winners are the trials with the best last validation accuracy at the full budget. The test images play no part in
that; each row of the table is tested once, after its last epoch.</li>
<li>A gain pairs each seed of an arm with the same seed of the tuned baseline. Where its interval includes zero, this
study does not show that there is a gain.</li>
<li>“Gap closed” is the gain as a share of the teacher’s lead over the tuned baseline. It stands only where that
lead is itself significant.</li>
<li>The default point is run as it is in both arms, whatever the searches find.</li>
</ul>"""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d9dee4;
  --main: #e8f1f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #181c22; --ink: #e6e9ed; --soft: #9aa4af;
  --line: #313841; --main: #142c3f; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; display: grid; gap: 24px; }
main > * { min-width: 0; }
header { padding: 0 4px; overflow-wrap: anywhere; }
.kind { margin: 0; color: var(--soft); font-size: 14px; }
h1 { margin: 2px 0 4px; font-size: 36px; line-height: 1.15; letter-spacing: -0.01em; }
header p:last-child { margin: 0; font-size: 18px; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 22px 26px; }
h2 { margin: 0 0 8px; font-size: 20px; line-height: 1.3; }
section > p { margin: 0 0 14px; max-width: 88ch; color: var(--soft); }
section > :last-child { margin-bottom: 0; }
.verdict { border-left: 5px solid var(--accent); }
.verdict .answer { margin: 0 0 10px; max-width: none; font-size: 24px; line-height: 1.35; font-weight: 600;
  color: var(--ink); }
.scope, .note, .progress { font-size: 14px; }
.verdict .scope { margin-top: 14px; }
.plot { min-width: 0; width: 100%; }
.scroll { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 7px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; font-weight: 600; color: var(--soft); line-height: 1.3; }
.number { text-align: right; }
td.number { white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; min-width: 6.5em; background: var(--card); }
td:nth-child(2) { white-space: nowrap; }
tr.main td, tr.main td:first-child { background: var(--main); font-weight: 600; }
ul { margin: 0; padding-left: 20px; max-width: 80ch; }
li { margin: 0 0 8px; }
summary { cursor: pointer; }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 700px) {
  main { padding: 20px 10px 40px; gap: 14px; }
  section { padding: 16px 14px; }
  h1 { font-size: 28px; }
  .verdict .answer { font-size: 19px; }
}
@media print { section { break-inside: avoid; } }
"""

# Drawn on load, all at once: earlier, a figure would measure itself before the page has its final width.
SCRIPT = """
const page = JSON.parse(document.getElementById("figures").textContent);
const phone = matchMedia("(max-width: 700px)"), dark = matchMedia("(prefers-color-scheme: dark)");
function layoutOf(figure) {
  const layout = structuredClone(phone.matches ? figure.narrow : figure.wide);
  layout.template = structuredClone(page.template);
  layout.template.layout.font.color = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  layout.template.layout.paper_bgcolor = "rgba(0,0,0,0)";
  if (phone.matches) Object.assign(layout, { dragmode: false });  // a finger on a figure scrolls the page
  return layout;
}
function dataOf(figure) {
  let text = JSON.stringify(figure.data);
  if (dark.matches) for (const [light, bright] of page.onDark) text = text.replaceAll(light, bright);
  return JSON.parse(text);
}
function draw() {
  for (const figure of page.figures)
    Plotly.newPlot(figure.name, dataOf(figure), layoutOf(figure), { responsive: true, displayModeBar: false });
}
addEventListener("load", draw);
phone.addEventListener("change", draw);
dark.addEventListener("change", draw);
"""
