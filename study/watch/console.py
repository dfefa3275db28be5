"""Where commands print: a terminal, or a log."""

from typing import Any

from rich.console import Console

from kdstudy.trainables.credentials import redact

LOG_WIDTH = 140


class RedactingConsole(Console):
    """Prints no secrets."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(redact(shown) if isinstance(shown, str) else shown for shown in objects), **options)


def make_console() -> Console:
    """The terminal, or a log: wide enough there that lines are not cut."""
    console = RedactingConsole(highlight=False)
    return console if console.is_terminal else RedactingConsole(highlight=False, width=LOG_WIDTH)


def print_prose(console: Console, text: str, **options: Any) -> None:
    """Print sentences: wrapped between words on a terminal; in a log one line, so that it can be searched."""
    console.print(text, soft_wrap=not console.is_terminal, markup=False, **options)
