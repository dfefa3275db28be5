"""Every trial of a study as an HTML table that sorts and filters."""

import html
from typing import Any

import pandas as pd

from kdstudy.analysis.figures.style import ORIGINS, show
from kdstudy.analysis.number_text import show_number
from kdstudy.analysis.study_files import StudyFiles
from kdstudy.analysis.tables import OTHERS

NUMERIC = {"trial", "lr", *OTHERS, "epochs", "last %", "best %", "seconds"} - {"optimizer"}


def trials_section(study: StudyFiles) -> str:
    """The section of the page; a sentence while there is no trial yet."""
    rows = _rows(study)
    if not rows:
        return "<section id=s-trials><h2>All trials</h2><p>No trial has been started yet.</p></section>"
    columns = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    numeric = NUMERIC | study.of_distillation - {"teacher", "loss"}
    head = "".join(f"<th{_align(name in numeric)}><button>{html.escape(name.replace('_', ' '))}</button></th>"
                   for name in columns)
    body = "\n".join(f"<tr>{''.join(_cell(name, row[name], name in numeric) for name in columns)}</tr>" for row in rows)
    return (
        f"<section id=s-trials><h2>All trials</h2><p class=filter><input type=search id=trials-filter "
        'placeholder="e.g. distill complete" aria-label="show trials that contain">'
        f"<span id=trials-count>{len(rows)} of {len(rows)} trials</span></p>"
        "<p>Click a heading to sort. Accuracies are on the validation images; “last” is that of the last epoch "
        "that a trial reached.</p><div class=trials><table id=trials>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></section>")


def _rows(study: StudyFiles) -> list[dict[str, Any]]:
    seconds = study.curves.dropna(subset=["seconds"]).groupby(["stage", "trial"])["seconds"].max()
    trials = study.trials.astype(object)
    return [{
        "stage": row["stage"].replace("_", " "), "trial": row["trial"],
        "last %": _percent(row["last_validation_accuracy"]), **{name: row[name] for name in study.parameter_names},
        "origin": ORIGINS.get(row["origin"], row["label"] or row["origin"]), "epochs": row["epochs"],
        "ended": row["ended"], "best %": _percent(row["best_validation_accuracy"]),
        "seconds": _number(seconds.get((row["stage"], row["trial"]))), "reason": row["reason"],
    } for row in trials.where(trials.notna(), None).to_dict("records")]


def _show(value: float) -> str:
    return show_number(value) if 0 < abs(value) < 0.01 else show(value)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else round(float(value), 1)


def _align(numeric: bool) -> str:
    return " class=number" if numeric else ""


def _cell(name: str, value: Any, numeric: bool) -> str:
    if value is None:
        return f"<td{_align(numeric)}></td>"
    if name.endswith("%"):
        text = f"{value:.2f}"
    else:
        text = html.escape(value) if isinstance(value, str) else _show(value)
    number = f' data-value="{value}"' if numeric and not isinstance(value, str) else ""
    kind = " class=reason" if name == "reason" else _align(numeric)
    return f"<td{kind}{number}>{text}</td>"
