"""The results table for a terminal. It wraps at words: a number or a hyperparameter is never torn at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from kdstudy.analysis.number_text import gain_cell
from kdstudy.analysis.tables import named_teacher, show_accuracy, show_hyperparameters

COLUMNS = ("", "hyperparameters", "test accuracy %", "gain [95 %]")
CONTROL_COLUMNS = ("control", "hyperparameters", "test accuracy %", "gain over it [95 %]")
SERIES_COLUMNS = ("baseline tuned %", "distilled %", "gain [95 %]")
GAP = 2  # blanks between columns


def console_table(outcome: dict[str, Any]) -> ConsoleTable:
    """The table for a terminal, as a rich renderable."""
    return ConsoleTable(tuple(_console_cells(row) for row in outcome["rows"]),
                        tuple(bool(row.get("primary")) for row in outcome["rows"]))


def series_table(content: dict[str, Any]) -> ConsoleTable:
    """The table of a series of studies. content: of series.json."""
    rows = tuple((str(member["amount"]), _accuracy(member["baseline"]), _accuracy(member["distilled"]),
                  gain_cell(member["gain"]) or "not confirmed yet") for member in content["members"])
    return ConsoleTable(rows, (False,) * len(rows), (content["axis"], *SERIES_COLUMNS))


def _accuracy(row: dict[str, Any] | None) -> str:
    return show_accuracy(row) if row else ""


def controls_table(outcome: dict[str, Any]) -> ConsoleTable | None:
    """The table of the controls, with the gain of the distilled student over each; None where there are none."""
    rows = tuple((row["control"].replace("_", " "), _of_control(row), show_accuracy(row), gain_cell(row["gain"]))
                 for row in outcome.get("controls", []))
    return ConsoleTable(rows, (False,) * len(rows), CONTROL_COLUMNS) if rows else None


def _of_control(row: dict[str, Any]) -> str:
    """The parameters of a control, with what sets it apart from the row that it is made from."""
    own = {"label_smoothing": f" smoothing {row.get('label_smoothing', 0):.2g}",
           "equal_compute": f" epochs {row['epochs']}"}
    return _parameters(row) + own.get(row["control"], "")


def _parameters(row: dict[str, Any]) -> str:
    return show_hyperparameters(row, 2).replace(",", "")


def _console_cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = named_teacher(row) if row["arm"] == "teacher" else f"{row['arm']} {row['configuration']}"
    return name, _parameters(row), show_accuracy(row), gain_cell(row["gain"])


@dataclass(frozen=True)
class ConsoleTable:
    """Rows of cells, some in bold. Where there is room for whole numbers, about 72 columns, only the names wrap."""

    rows: tuple[tuple[str, ...], ...]
    bold: tuple[bool, ...]
    columns: tuple[str, ...] = COLUMNS

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Table]:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        for title, width in zip(self.columns, self._widths(options.max_width), strict=True):
            table.add_column(title, overflow="fold", width=width)
        for cells, bold in zip(self.rows, self.bold, strict=True):
            table.add_row(*map(Text, cells), style="bold" if bold else "")
        yield table

    def _widths(self, available: int) -> list[int | None]:
        """A width per column; None where rich chooses it, which by itself would shrink the widest column first."""
        columns = list(zip(self.columns, *self.rows, strict=True))
        whole = [max(map(len, texts)) for texts in columns[1:]]
        longest_word = max(len(word) for text in columns[0] for word in text.split() or [""])
        fits = longest_word + sum(whole) + GAP * len(whole) <= available
        return [None, *(whole if fits else [None] * len(whole))]
