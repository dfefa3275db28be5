"""`kdstudy status` of a series: one line for each member, and about how long all of them still take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kdstudy.errors import StudyFailedError
from kdstudy.series.folder import SeriesFolder, StoredMember
from kdstudy.stages.order import stages_of
from kdstudy.watch.display import clock
from kdstudy.watch.status import Snapshot


def show_series(series: SeriesFolder, console: Console, every: float | None = None) -> None:
    """Print the progress of a series. every: seconds between updates, until no driver runs a member; None: once.

    Raises UserError where a member cannot be reached, StudyFailedError where the driver ends before all are done.
    """
    snapshots = [Snapshot(member.storage, stages_of).update(fetch=False) for member in series.members]
    if every is None:
        console.print(_page(series, snapshots), soft_wrap=True)
        return
    _follow(series, snapshots, console, every)


def _follow(series: SeriesFolder, snapshots: list[Snapshot], console: Console, every: float) -> None:
    """Redraw in place on a terminal; in a log, print the line of each member when it changes."""
    silent = 0  # updates in a row without a driver: between two members there is none for a moment
    with contextlib.suppress(KeyboardInterrupt), _shown(series, console) as show:
        show(snapshots)
        while silent < 2 and not all(one.complete for one in snapshots):
            time.sleep(every)
            snapshots = [one.update() for one in snapshots]
            silent = 0 if any(one.driver for one in snapshots) else silent + 1
            show(snapshots)
        if not all(one.complete for one in snapshots):
            raise StudyFailedError(f"no driver is running {series.storage}, and it is not done; `kdstudy run "
                                   f"{series.storage}` continues it")


@contextlib.contextmanager
def _shown(series: SeriesFolder, console: Console) -> Iterator[Callable[[list[Snapshot]], None]]:
    """Yield the function to call after every update."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda snapshots: live.update(_page(series, snapshots), refresh=True)
        return
    told: dict[str, tuple] = {}

    def tell(snapshots: list[Snapshot]) -> None:
        if not told:
            console.print(_page(series, snapshots), soft_wrap=True)
        for member, one in zip(series.members, snapshots, strict=True):
            news = (one.complete, *(stage.news() for stage in one.stages))
            if told.get(member.name, news) != news:
                console.print(_line(member, one, len(member.name)), soft_wrap=True)
            told[member.name] = news

    yield tell


def _page(series: SeriesFolder, snapshots: list[Snapshot]) -> RenderableType:
    done = sum(one.complete for one in snapshots)
    parts = [f"{done} of {len(snapshots)} studies done"]
    left = seconds_left(series, snapshots)
    if left is not None and done < len(snapshots):
        parts.append(f"about {clock(left)} left in all")
    driver = next((one.driver for one in snapshots if one.driver), None)
    parts.append(f"driver: {driver or 'none'}")
    width = max(len(member.name) for member in series.members)
    title = Text.assemble((series.series.name, "bold"), f"  {series.storage}")
    return Group(title, Text(" · ".join(parts), style="dim"),
                 *(_line(member, one, width) for member, one in zip(series.members, snapshots, strict=True)))


def _line(member: StoredMember, snapshot: Snapshot, width: int) -> Text:
    """How far a member is: its verdict, or the first stage that is not done."""
    name = f"{member.name:<{width}}  "
    if not snapshot.stages:
        return Text.assemble((name, "bold"), ("starting" if snapshot.driver else "not begun", "dim"))
    if snapshot.complete:
        return Text.assemble((name, "bold"), ("✓ ", "green"), snapshot.verdict or "done")
    stages = [stage for stage in snapshot.stages if stage.done is None]
    current = next((stage for stage in stages if stage.running), stages[0])
    ended = len(snapshot.stages) - len(stages)
    failed = sum(len(stage.failures()) for stage in snapshot.stages)
    place = f"{ended} of {len(snapshot.stages)} stages · {current.name.replace('_', ' ')}: "
    return Text.assemble((name, "bold"), place, current.line()[0],
                         (f" · {failed} failed trials" if failed else "", "red"))


def seconds_left(series: SeriesFolder, snapshots: list[Snapshot]) -> float | None:
    """About how many seconds all members still take; None before anything is known.

    A member that has not begun takes as long as one that is known, times the ratio of what varies, for that is what its
    students' epochs or images are; with another teacher, as long as the other.
    """
    lefts = [0.0 if one.complete else one.seconds_left() for one in snapshots]
    costs = [1.0 if series.series.setting == "teacher.epochs" else float(member.value) for member in series.members]
    rates = [(one.seconds_run() + left) / cost for one, left, cost in zip(snapshots, lefts, costs, strict=True)
             if left is not None and one.seconds_run()]
    if not rates:
        return None
    rate = max(rates)  # the first has also trained what the others take over
    return sum(rate * cost if left is None else left for left, cost in zip(lefts, costs, strict=True))
