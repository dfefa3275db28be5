"""The progress display of `kdstudy run`: one line per finished stage, and a live line for the running stages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kdstudy.store.record import METRIC, TrialState
from kdstudy.watch import progress
from kdstudy.watch.console import mute_control_keys, print_prose, restore_terminal

if TYPE_CHECKING:  # avoids importing Ray and Optuna
    from kdstudy.search.manager import TrialManager

PLAIN_INTERVAL = 15.0  # seconds between lines where the output is not a terminal
STAGE_WIDTH = 16
BAR_WIDTH = 20
RECENT = 60.0  # seconds: a slot that waits for another trial's report is free only for a moment


class Display:
    """The progress display, which owns the terminal while a study runs."""

    def __init__(self, console: Console, stages: tuple[str, ...]):
        self.console, self.stages = console, stages
        self._live: Live | None = None
        self._pending: dict[str, progress.Pending] = {}
        self._ended: set[str] = set()
        self._epoch_seconds: dict[str, float] = {}
        self._running: deque[tuple[float, int]] = deque()  # when shown, and how many trials were running

    def expect(self, pending: dict[str, progress.Pending]) -> None:
        """The study has these stages; some may have begun, or have ended."""
        self._pending = dict(pending)

    def begin(self, *stages: str, text: str = "") -> None:
        """Start the live line for one or several stages. Call `stop` afterwards."""
        self._current, self._started, self._last_plain = stages, time.monotonic(), time.monotonic()
        self._text: Callable[[], str] = lambda: text
        if self.console.is_terminal:
            # Called at every refresh, to keep the clock running between reports.
            self._terminal = mute_control_keys()
            self._live = Live(console=self.console, refresh_per_second=4, transient=True, get_renderable=self._now)
            self._live.start()

    def now(self, *stages: str) -> None:
        """Set the running stages, when some have started or ended."""
        if not set(stages) & set(self._current):
            self._started = time.monotonic()
        self._current = stages

    def update(self, text: str) -> None:
        """Show a text for the running stages."""
        self._show(lambda: text)

    def trials(self, managers: dict[str, TrialManager]) -> None:
        """Show the progress of the running stages. Formatted only when displayed, since trials may be many."""
        self._show(lambda: self._describe(managers))

    def _show(self, text: Callable[[], str]) -> None:
        self._text = text
        if not self._live and time.monotonic() - self._last_plain > PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            self.console.print(self._now(), soft_wrap=True)

    def end(self, stage: str, outcome: str, seconds: float, reused: bool = False) -> None:
        """Leave a stage's line behind."""
        self._ended.add(stage)
        line = self._line((stage,), "=" if reused else "✓", outcome, "" if reused else clock(seconds))
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def note(self, text: str) -> None:
        """Print a note about a problem that does not affect the study."""
        print_prose(self.console, f"note: {text}")

    def stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
            restore_terminal(self._terminal)

    def _line(self, stages: tuple[str, ...], mark: str, text: str, right: str) -> Table | Text:
        style = {"✓": "green", "=": "dim", "…": "cyan"}[mark]
        stages = sorted(stages, key=self.stages.index)
        numbers = "+".join(str(self.stages.index(stage) + 1) for stage in stages)
        position, name = f"{numbers}/{len(self.stages)}", " + ".join(stages).replace("_", " ")
        if not self.console.is_terminal:  # a log has no width: print one line, so that it can be searched
            return Text(f"{position} {name:<{STAGE_WIDTH}} {mark} {text} {right}".rstrip())
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, min_width=STAGE_WIDTH)
        grid.add_column(no_wrap=True, width=1)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_column(justify="right", no_wrap=True)
        grid.add_row(Text(position, style="dim"), Text(name, style="bold"),
                     Text(mark, style=style), Text(text), Text(right, style="dim"))
        return grid

    def _now(self) -> Table | Text:
        return self._line(self._current, "…", self._text(), clock(time.monotonic() - self._started))

    def _describe(self, managers: dict[str, TrialManager]) -> str:
        trials = [trial for manager in managers.values() for trial in _trials(manager)]
        total = sum(manager.total for manager in managers.values())
        running = sum(len(manager.running) for manager in managers.values())
        ended = len(trials) - running - sum(manager.waiting for manager in managers.values())
        counts = {state: sum(trial.state == state for trial in trials) for state in ("stopped", "failed")}
        # If several stages run, show the best trial of the last one.
        best = next((f"{100 * max(values):.1f} %{f' ({_words(stage)})' if len(managers) > 1 else ''}"
                     for stage, manager in reversed(managers.items()) if (values := _accuracies(manager))), None)
        filled = round(ended / total * BAR_WIDTH)
        parts = [f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} {ended}/{total} trials", f"{running} running"]
        parts += [f"{count} {state}" for state, count in counts.items() if count]
        parts += [f"best {best}"] if best else []
        left = self._seconds_left(managers)
        return " · ".join(parts + ([f"about {clock(left)} left"] if left is not None else []))

    def _seconds_left(self, managers: dict[str, TrialManager]) -> float | None:
        """Of the whole study; None before anything is known."""
        known = {stage: seconds for stage, manager in managers.items() if (seconds := _seconds_per_run(manager))}
        self._epoch_seconds |= {stage: seconds / managers[stage].epochs for stage, seconds in known.items()}
        pending = {stage: one for stage, one in self._pending.items()
                   if stage not in managers and stage not in self._ended}
        runs = {stage: _runs_left(manager) for stage, manager in managers.items()}
        running = self._most_running(sum(len(manager.running) for manager in managers.values()))
        return progress.study_seconds_left(runs, known, self._epoch_seconds, pending, running)

    def _most_running(self, now: int) -> int:
        """The most trials that were shown running at a time lately."""
        self._running.append((time.monotonic(), now))
        while self._running[0][0] < time.monotonic() - RECENT:
            self._running.popleft()
        return max(running for _, running in self._running)


def _seconds_per_run(manager: TrialManager) -> float | None:
    return progress.seconds_per_run(_trials(manager), manager.epochs, manager.record.session.get("time", 0))


def _accuracies(manager: TrialManager) -> list[float]:
    return [value for trial in _trials(manager) if (value := trial.metric(METRIC)) is not None]


def _words(stage: str) -> str:
    return stage.replace("_", " ")


def _trials(manager: TrialManager) -> tuple[TrialState, ...]:
    """Return a copy of the trials, since the display thread reads them while others are added."""
    return tuple(manager.record.trials.values())


def _runs_left(manager: TrialManager) -> float:
    """The work that a manager still expects, in full runs."""
    return progress.runs_left(dict(manager.record.trials), manager.total, manager.epochs, manager.protected,
                              manager.may_stop)


def clock(seconds: float) -> str:
    """Format seconds as 1:05 or 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def show_bytes(count: float) -> str:
    """Format bytes with three significant digits and a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
