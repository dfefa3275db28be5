"""Consoles for printing to a terminal or a log, with secrets redacted."""

import contextlib
import os
import sys
import termios
import textwrap
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kdstudy.trainables.credentials import redact

LOG_WIDTH = 140
LOCAL_FLAGS = 3  # their place in what `termios.tcgetattr` returns


class RedactingConsole(Console):
    """A console that redacts secrets in strings."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(shown) if isinstance(shown, str) else shown for shown in objects), **options)


def make_console() -> Console:
    """Return a console for the terminal, or a wide one for a log, so that lines are not wrapped."""
    console = RedactingConsole(highlight=False)
    return console if console.is_terminal else RedactingConsole(highlight=False, width=LOG_WIDTH)


def print_prose(console: Console, text: str, **options: Any) -> None:
    """Print sentences: wrapped between words on a terminal; in a log one line, so that it can be searched."""
    console.print(text, **({"soft_wrap": not console.is_terminal, "markup": False} | options))


def mute_control_keys() -> list[Any] | None:
    """Keep the terminal from echoing Ctrl-C as ^C, which would tear lines that are drawn anew in place.

    Returns the terminal's settings as they were, for `restore_terminal`; None where nothing was changed: there is no
    terminal, or this process runs in its background, where the system would stop it for this.
    """
    with contextlib.suppress(Exception):
        terminal = sys.stdin.fileno()
        if os.tcgetpgrp(terminal) == os.getpgrp():
            earlier = termios.tcgetattr(terminal)
            muted = list(earlier)
            muted[LOCAL_FLAGS] &= ~termios.ECHOCTL
            termios.tcsetattr(terminal, termios.TCSADRAIN, muted)
            return earlier
    return None


def restore_terminal(settings: list[Any] | None) -> None:
    with contextlib.suppress(Exception):
        terminal = sys.stdin.fileno()
        if settings is not None and os.tcgetpgrp(terminal) == os.getpgrp():
            termios.tcsetattr(terminal, termios.TCSADRAIN, settings)


def print_columns(console: Console, rows: list[tuple[str, ...]], widths: tuple[int, ...], indent: str = "") -> None:
    """Print rows whose last column is prose: wrapped within its column on a terminal; in a log a line for each row.

    widths: of all columns but the last, at least.
    """
    if not console.is_terminal:
        for row in rows:
            shown = " ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
            console.print(f"{indent}{shown} {row[-1]}".rstrip(), soft_wrap=True, markup=False)
        return
    table = Table.grid(padding=(0, 1))
    for width in widths:
        table.add_column(min_width=width, overflow="fold", max_width=max(width, console.width // 3))
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Padding(table, (0, 0, 0, len(indent))))


def print_terms(console: Console, rows: list[tuple[str, str]], column: int, width: int) -> None:
    """Print terms with what they mean: in lines of at most `width` characters, the meaning from `column` on."""
    for term, meaning in rows:
        first, *others = textwrap.wrap(meaning, max(width - column, 20), break_on_hyphens=False) or [""]
        lines = [f"{term.ljust(column - 1)} {first}"] if len(term) < column else [term, " " * column + first]
        lines += [" " * column + line for line in others]
        console.print("\n".join(line.rstrip() for line in lines), soft_wrap=True, markup=False)
