"""The progress that a person watches: one line per finished stage, one live line for the current one."""

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study.search import METRIC, TrialBook

PLAIN_INTERVAL = 15.0  # seconds between lines where the output is not a terminal
STAGE_WIDTH = 15
BAR_WIDTH = 20


class Display:
    """Owns the terminal while a study runs."""

    def __init__(self, console: Console, stages: tuple[str, ...]):
        self.console, self.stages = console, stages
        self._live: Live | None = None

    def begin(self, stage: str, text: str = "") -> None:
        self._stage, self._started, self._last_plain = stage, time.monotonic(), time.monotonic()
        self._epochs_before: float | None = None
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        self.update(text)

    def update(self, text: str) -> None:
        """Show where the current stage is."""
        if self._live:
            self._live.update(self._line("…", text, self._elapsed()), refresh=False)
        elif text and time.monotonic() - self._last_plain > PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            self.console.print(self._line("…", text, self._elapsed()))

    def trials(self, book: TrialBook) -> None:
        """Show a search's progress; the callback of a TrialBook."""
        self.update(self._describe(book))

    def end(self, outcome: str, seconds: float, reused: bool = False) -> None:
        """Leave the stage's line behind."""
        self.stop()
        self.console.print(self._line("=" if reused else "✓", outcome, "" if reused else clock(seconds)))

    def stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _line(self, mark: str, text: str, right: str) -> Table:
        style = {"✓": "green", "=": "dim", "…": "cyan"}[mark]
        position = f"{self.stages.index(self._stage) + 1}/{len(self.stages)}"
        grid = Table.grid(padding=(0, 1), expand=self.console.is_terminal)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, width=STAGE_WIDTH)
        grid.add_column(no_wrap=True, width=1)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_column(justify="right", no_wrap=True)
        grid.add_row(Text(position, style="dim"), Text(self._stage.replace("_", " "), style="bold"),
                     Text(mark, style=style), text, Text(right, style="dim"))
        return grid

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self._started)

    def _describe(self, book: TrialBook) -> str:
        trials = list(book.record.trials.values())
        ended = [trial for trial in trials if trial.number not in book.running and book.is_finished(trial)]
        stopped = sum(trial.state == "stopped" for trial in trials)
        failed = sum(trial.state == "failed" for trial in trials)
        values = [trial.metric(METRIC) for trial in trials if trial.metric(METRIC) is not None]
        share = len(ended) / book.total
        bar = "━" * round(share * BAR_WIDTH) + "╌" * (BAR_WIDTH - round(share * BAR_WIDTH))
        parts = [f"{bar} {len(ended)}/{book.total} trials", f"{len(book.running)} running"]
        parts += [f"{stopped} stopped"] if stopped else []
        parts += [f"{failed} failed"] if failed else []
        parts += [f"best {100 * max(values):.1f} %"] if values else []
        left = self._seconds_left(book)
        return " · ".join(parts + ([f"about {clock(left)} left"] if left is not None else []))

    def _seconds_left(self, book: TrialBook) -> float | None:
        """From the epochs still expected and the epochs per second so far; None before anything is known."""
        trials = list(book.record.trials.values())
        done = float(sum(trial.epoch for trial in trials))
        if self._epochs_before is None:
            self._epochs_before = done
        elapsed, fresh = time.monotonic() - self._started, done - self._epochs_before
        if fresh <= 0 or elapsed <= 0:
            return None
        ended = [trial.epoch for trial in trials if trial.state != "running" and not trial.protected]
        typical = sum(ended) / len(ended) if ended else book.epochs * (1.0 if not book.may_stop else 0.5)
        left = 0.0
        for number in range(book.total):
            trial = book.record.trials.get(number)
            if trial is not None and trial.state != "running":
                continue
            protected = trial.protected if trial else number <= book.protected
            expected = book.epochs if protected else typical
            left += max(expected - (trial.epoch if trial else 0), 0)
        return left * elapsed / fresh


def clock(seconds: float) -> str:
    """1:05, or 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
