"""A study's results as files: one HTML page, JSON, Markdown and CSV. Also while the study still runs.

    results.json      the results table, gain, verdict: `outcome`.  Accuracies in percent, gains in percentage points
    results.md        the same as Markdown: `tables`
    trials.csv        a row per trial: `study_files`.               Accuracies as shares, 0 to 1
    curves.csv        a row per report: `study_files`.              Accuracies as shares, 0 to 1
    classes.csv       a row per class: `predictions`.               Accuracies in percent, gains in percentage points
    sensitivity.json  prices, effects, curves, map: `sensitivity`.  Accuracies in percent, prices in percentage points,
                                                                    effects as shares of the variance, 0 to 1
    report.html       the page: `page`

`frames` reads the tables with one unit, percent, and with the unit in every column's name.
"""

import json
import os
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kdstudy.analysis import tables
from kdstudy.analysis.exhibits import catalogue
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.page.report_page import report_page
from kdstudy.analysis.study_analysis import StudyAnalysis

FIGURES = tuple(catalogue.EXHIBITS)  # the names of all figures, in the order of the page


def build(folder: Path) -> bool:
    """Write a study's results to its `results/` folder. Returns whether any file changed.

    The same record gives the same bytes. Raises ValueError where a stage's files do not fit together.
    """
    analysis = StudyAnalysis.of(folder)
    contents = {
        "results.json": as_json(analysis.outcome),
        "results.md": tables.markdown(analysis.outcome),
        "trials.csv": analysis.study.trials.to_csv(index=False, lineterminator="\n"),
        "curves.csv": analysis.study.curves.to_csv(index=False, lineterminator="\n"),
        "sensitivity.json": as_json(analysis.sensitivity),
        "classes.csv": analysis.classes.to_csv(index=False, lineterminator="\n"),
        "report.html": report_page(analysis),
    }
    results = folder / "results"
    results.mkdir(exist_ok=True)
    return any([write_changed(results / name, content) for name, content in contents.items()])


def exhibits(folder: Path) -> list[Exhibit]:
    """A study's figures with their headings and captions, in the order of the page."""
    return catalogue.exhibits(StudyAnalysis.of(folder))


def figures(analysis: StudyAnalysis) -> dict[str, go.Figure]:
    """A study's figures by name, those of FIGURES that can be drawn by now.

    Accuracies are in percent, gains and prices in percentage points. Raises ValueError where a stage's files do not fit
    together.
    """
    return {exhibit.name: exhibit.figure for exhibit in catalogue.exhibits(analysis) if exhibit.figure}


def figure(analysis: StudyAnalysis, name: str) -> go.Figure:
    """One figure by its name; only what it needs is computed.

    Raises ValueError where no figure has that name, and, with the reason, where it cannot be drawn yet.
    """
    found = catalogue.exhibit(name, analysis)
    if found.figure is None:
        raise ValueError(f"the figure {name!r} cannot be drawn yet: {found.absent}")
    return found.figure


def as_json(content: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_changed(path: Path, content: str) -> bool:
    """Replace a file in one step, if its content changes. Returns whether it did."""
    encoded = content.encode("utf-8")
    if path.exists() and path.read_bytes() == encoded:
        return False
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(encoded)
    os.replace(partial, path)
    return True
