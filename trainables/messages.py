"""Messages on one line."""

from kdstudy.trainables.credentials import redact


def one_line(error: Exception) -> str:
    """An error's message on one line of at most 200 characters, without secrets; the error's type if it has none."""
    return " ".join(redact(str(error)).split())[:200] or type(error).__name__


def printable(text: str) -> str:
    """A text, such as a file's name, with ? for what cannot be printed on one line or written as UTF-8."""
    return "".join(char if char.isprintable() else "?" for char in text)
