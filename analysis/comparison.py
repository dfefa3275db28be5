"""Several studies on one page: who learned from whom, what it gained, and what tuning was worth in each."""

import html
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures import several_studies
from kdstudy.analysis.page.document import document, sections_of
from kdstudy.analysis.page.results_table import takeaways_table
from kdstudy.analysis.study_files import read_json
from kdstudy.analysis.tables import PUBLISHED, setting


def build(folders: list[Path], out: Path) -> None:
    """Write the page. Each study's own results must have been written: `report.build`."""
    outcomes = [read_json(folder / "results" / "results.json") for folder in folders]
    known = [read_json(folder / "results" / "sensitivity.json") for folder in folders]
    names = distinct_names(outcomes, folders)
    exhibits = _exhibits(names, outcomes, known)
    body = [
        "<header><p class=kind>Hyperparameter studies of knowledge distillation</p>"
        f"<h1>{len(folders)} studies side by side</h1></header>",
        f"<section class=verdict><h2>Verdicts</h2><ul>{_verdicts(names, outcomes, folders, out)}</ul>"
        f"{_published(outcomes)}</section>",
        f"<section><h2>Takeaways</h2>{takeaways_table(names, outcomes)}</section>", *sections_of(exhibits),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(document("Does distillation help? Several studies", body, exhibits), encoding="utf-8")


def distinct_names(outcomes: list[dict[str, Any]], folders: list[Path]) -> list[str]:
    """The studies' names; with their folders where several have the same name."""
    counts = Counter(outcome["study"] for outcome in outcomes)
    return [f"{outcome['study']} ({folder})" if counts[outcome["study"]] > 1 else outcome["study"]
            for outcome, folder in zip(outcomes, folders, strict=True)]


def _exhibits(names: list[str], outcomes: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[Exhibit]:
    return [
        Exhibit("gains", "What distillation gained",
                "Test accuracy over each study’s own tuned baseline, with 95 % intervals. Filled: temperature, α and "
                "the rest tuned; open: only what the baseline tunes too, and the default point. Each interval is about "
                "its own study; with many studies side by side, some exclude zero by chance.",
                "No study has a confirmed gain yet.", several_studies.gains(names, outcomes)),
        Exhibit("prices", "The price of not tuning",
                "Points of validation accuracy lost by leaving one parameter at its default while the others are tuned "
                "again, with 90 % intervals. A parameter whose interval is above zero in every study is worth tuning "
                "in the next one. Open marks: too few trials, so the intervals are narrower than they should be.",
                "No study has enough trials to say.", several_studies.prices(names, known)),
    ]


def _verdicts(names: list[str], outcomes: list[dict[str, Any]], folders: list[Path], out: Path) -> str:
    return "".join(f'<li><a href="{html.escape(_report_of(folder, out), quote=True)}">{html.escape(name)}</a> '
                   f"({html.escape(setting(outcome))}): {html.escape(outcome['verdict'])}</li>"
                   for name, folder, outcome in zip(names, folders, outcomes, strict=True))


def _published(outcomes: list[dict[str, Any]]) -> str:
    return f"<p class=note>{PUBLISHED}</p>" if any(outcome["published"] for outcome in outcomes) else ""


def _report_of(folder: Path, out: Path) -> str:
    """The address of a study's own page, relative to this one."""
    return quote(Path(os.path.relpath(folder / "results" / "report.html", out.parent)).as_posix())
