"""Error messages."""

from kdstudy.trainables.credentials import redact


def one_line(error: Exception) -> str:
    """An error's message on one line of at most 200 characters, without secrets; the error's type if it has none."""
    return " ".join(redact(str(error)).split())[:200] or type(error).__name__
