"""Helpers for commands: print a study's results, and handle Ctrl-C and SIGTERM."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from kdstudy.errors import InterruptedStudyError
from kdstudy.store.storage import Storage
from kdstudy.watch.console import print_prose


def print_results(console: Console, storage: Storage) -> None:
    from kdstudy.analysis.console_table import console_table, controls_table
    from kdstudy.analysis.study_files import StudyFiles
    from kdstudy.store.files import read_json

    folder = storage.folder
    results = read_json(folder / "results" / "results.json")
    console.print(f"\n{results['study']}", style="bold", soft_wrap=True, markup=False)
    console.print(console_table(results))
    if controls := controls_table(results):
        console.print()
        console.print(controls)
    print_prose(console, results["verdict"], style="bold")
    for statement in results.get("audit", {}).get("statements", []):
        print_prose(console, f"Audit: {statement}")
    print_prose(console, results["scope"], style="dim")
    if (folder / "export").exists() and (better := _better_baseline(results)):
        print_prose(console, f"note: the student in {storage}/export is less accurate than the tuned baseline, "
                             f"{better}; `kdstudy export {storage} OUT --model baseline` exports that one")
    console.print()
    console.print(f"report   {folder / 'results' / 'report.html'}", soft_wrap=True, markup=False)
    if StudyFiles(folder).has_current_export:
        console.print(f"student  {folder / 'export'}", soft_wrap=True, markup=False)
    if storage.uri is not None:
        console.print(f"these are copies; the study is stored at {storage}", style="dim", soft_wrap=True, markup=False)


def _better_baseline(results: dict[str, Any]) -> str:
    """By how much the tuned baseline is more accurate than the chosen student, both as means over the seeds; "" if it
    is not, or if this is a trial run."""
    from kdstudy.analysis.study_files import find_row

    rows = [find_row(results, arm, "tuned") for arm in ("baseline", "distilled")]
    if results["smoke"] or None in rows or rows[0]["test_mean"] <= rows[1]["test_mean"]:
        return ""
    return f"{rows[0]['test_mean']:.2f} % against {rows[1]['test_mean']:.2f} %"


@contextlib.contextmanager
def stoppable(location: str) -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C. Raises InterruptedStudyError with a message that says how to resume."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def again(lost: Any) -> None:
        """Retry an interrupt raised during object deletion, where Python swallows exceptions."""
        if lost.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            sys.__unraisablehook__(lost)

    earlier = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGALRM)}
    sys.unraisablehook = again
    try:
        yield
    except (InterruptedStudyError, KeyboardInterrupt):
        begun = "://" in location or Path(location).exists()
        kept = f"finished work is kept in {location}" if begun else "nothing had started"
        raise InterruptedStudyError(f"stopped; {kept}. Run the same command again to continue") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = sys.__unraisablehook__
        for number, handler in earlier.items():
            signal.signal(number, handler)
