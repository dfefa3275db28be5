"""Consoles for printing to a terminal or a log, with secrets redacted."""

from typing import Any

from rich.console import Console

from kdstudy.trainables.credentials import redact

LOG_WIDTH = 140


class RedactingConsole(Console):
    """A console that redacts secrets in strings."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(shown) if isinstance(shown, str) else shown for shown in objects), **options)


def make_console() -> Console:
    """Return a console for the terminal, or a wide one for a log, so that lines are not wrapped."""
    console = RedactingConsole(highlight=False)
    return console if console.is_terminal else RedactingConsole(highlight=False, width=LOG_WIDTH)


def print_prose(console: Console, text: str, **options: Any) -> None:
    """Print text, word-wrapped on a terminal and as one searchable line in a log."""
    console.print(text, soft_wrap=not console.is_terminal, markup=False, **options)
