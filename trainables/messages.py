"""Words for errors."""

from kdstudy.trainables.credentials import redact


def one_line(error: Exception) -> str:
    """An error's message on one line, without secrets; its type where it has none."""
    return " ".join(redact(str(error)).split())[:200] or type(error).__name__
