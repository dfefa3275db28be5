"""Words for errors."""


def one_line(error: Exception) -> str:
    """An error's message on one line; its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
