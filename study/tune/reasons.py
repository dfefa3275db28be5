"""Why Ray's work failed, in one line."""

from pathlib import Path
from typing import Any

from kdstudy.errors import StudyFailedError, UserError
from kdstudy.store import files


def reason_of(error: BaseException) -> str:
    """Return the root cause of an exception from Tune as one line. Reraises kdstudy's own errors and full disks."""
    while True:
        if isinstance(error, (UserError, StudyFailedError)) or files.is_full(error):
            raise error
        behind = error.__cause__ or error.__context__
        if behind is None:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        error = behind


def why_worker_died(trial: Any) -> str:
    """Return why the worker of one of Tune's trials died: the line about low memory if there is one, else the last line
    of its traceback."""
    path = Path(trial.error_file) if trial.error_file else None
    text = path.read_text(errors="replace") if path and path.exists() else str(trial.get_error() or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "low on memory" in line] or lines or ["the worker died"]
    return telling[-1][:300]
