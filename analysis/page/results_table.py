"""The results table as HTML, of one study and of several."""

import html
import re
from collections.abc import Sequence
from typing import Any

from kdstudy.analysis import tables


def results_table(outcome: dict[str, Any]) -> str:
    """The table with its notes; a sentence while there is no row. outcome: the content of results.json."""
    if not outcome["rows"]:
        return "<p>No stage that the table needs is done yet.</p>"
    rows = [(tables.cells(row), bool(row.get("primary"))) for row in outcome["rows"]]
    return (f"{_table(tables.COLUMNS, tables.NUMERIC, rows)}\n"
            "<p class=note>“Best validation” comes from the search or the finalists that chose the row, so it is "
            "optimistic. “Only … tuned” takes from the fitted surface the best values of what the baseline tunes too. "
            "Test accuracy is the mean over the seeds ± their standard deviation, of models that were retrained on "
            f"fresh seeds.{_family(outcome)}</p>\n{_teachers(outcome)}{_controls(outcome)}"
            f"<p class=note>{html.escape(tables.wall_time(outcome))}</p>")


def _family(outcome: dict[str, Any]) -> str:
    """What the intervals of the gains mean, where several share the baseline."""
    others = max((row["gain"]["comparisons"] for row in outcome["rows"] if row["gain"]), default=1)
    if others < 2:
        return ""
    return (f" The gain of “distilled {html.escape(outcome['primary'])}” is the comparison chosen beforehand, with a "
            f"95 % interval of its own; the other {others} intervals are wider, so that all of them together hold with "
            "95 %.")


def _teachers(outcome: dict[str, Any]) -> str:
    """The table of several teachers with its note; nothing where there is one."""
    rows = [(tables.teacher_cells(row), False) for row in outcome.get("teachers", [])]
    if not rows:
        return ""
    return (f"<h3>Teachers</h3>{_table(tables.TEACHER_COLUMNS, tables.TEACHER_COLUMNS[1:], rows)}\n"
            f"<p class=note>The row “distilled {html.escape(outcome['primary'])}” above is over all "
            f"{len(rows)} teachers, which differ in their seed alone, and its interval treats them as a sample. All "
            "other rows, the search and the exported student are those of the first teacher. Here each interval is for "
            "that teacher alone.</p>\n")


def _controls(outcome: dict[str, Any]) -> str:
    """The table of the controls with its note; nothing where there are none."""
    rows = [(tables.control_cells(row), False) for row in outcome.get("controls", [])]
    if not rows:
        return ""
    return (f"<h3>Controls</h3>{_table(tables.CONTROL_COLUMNS, tables.CONTROL_COLUMNS[2:], rows)}\n"
            "<p class=note>What else could explain the gain, on the same seeds. “Label smoothing”: no teacher, labels "
            "smoothed as much as its own search found best. “Placebo”: each image gets the logits of another image of "
            "its class. “Permuted”: the logits of the wrong classes are shuffled. “Equal compute”: the tuned baseline "
            "with as many more epochs as the teacher’s logits cost. “Self”: the tuned baseline is the teacher. The "
            f"gain is that of “distilled {html.escape(outcome['primary'])}” over the control.</p>\n")


def takeaways_table(names: list[str], outcomes: list[dict[str, Any]]) -> str:
    """A row per study. names: of the studies. outcomes: the contents of their results.json."""
    return plain_table(tables.TAKEAWAYS, tables.NUMERIC_TAKEAWAYS, list(map(tables.takeaway, names, outcomes)))


def plain_table(columns: Sequence[str], numeric: Sequence[str], rows: list[list[str]]) -> str:
    """A table of texts, none of which stands out. numeric: the columns of numbers."""
    return _table(columns, numeric, [(row, False) for row in rows])


def _table(columns: Sequence[str], numeric: Sequence[str], rows: list[tuple[list[str], bool]]) -> str:
    """A table of texts. rows: each with whether it stands out."""
    head = "".join(_cell("th", column, column in numeric, column) for column in columns)
    body = "\n".join(f"<tr{' class=main' if main else ''}>{_cells(columns, numeric, texts)}</tr>"
                     for texts, main in rows)
    return f"<div class=scroll><table class=results><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def _cells(columns: Sequence[str], numeric: Sequence[str], texts: list[str]) -> str:
    return "".join(_cell("td", column, column in numeric, text) for column, text in zip(columns, texts, strict=True))


def _cell(tag: str, column: str, numeric: bool, text: str) -> str:
    label = f' data-label="{html.escape(column)}"' if tag == "td" and text else ""
    return f"<{tag}{' class=number' if numeric else ''}{label}>{html.escape(_bound(text))}</{tag}>"


def _bound(text: str) -> str:
    """The text with hyperparameters and their values, such as T 4, on the same line."""
    return re.sub(r"\b(T|α|lr) (?=\d)", "\\1\N{NO-BREAK SPACE}", text)
