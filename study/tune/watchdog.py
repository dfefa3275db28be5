"""Ends workers that hang, since Ray notices only workers that die: one that is stopped, or that waits for a file system
that is gone, would keep its trial for ever.

A worker hangs if it is silent for ten times as long as is usual for its stage, and for `resources.hang_minutes` at
least. A slow worker must not be ended, so that the first report has much longer: it includes imports, copying images to
the GPU and compiling.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.tune.experiment import Trial

from kdstudy.store.record import Record
from kdstudy.tune.own_ray import check_own_ray
from kdstudy.watch.display import clock

TIMES_USUAL = 10
# In units of resources.hang_minutes; by default an hour, and a day.
WHILE_STARTING, WHILE_UNKNOWN = 12, 288
LATEST = 1000  # reports of a stage that say what is usual
LOOK_EVERY = 1.0  # seconds
LONGEST_TICK = 5.0  # seconds between two looks that count: more, and the driver itself was stopped
Name = tuple[str, int]  # (stage, trial number)


@dataclass
class Usual:
    """For how long trials of a stage were silent before their first report, and between two reports, in seconds."""

    first: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    between: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))

    @classmethod
    def of(cls, record: Record) -> Usual:
        """What a record says. Where a driver ended between two reports the time is too long; few are."""
        usual = cls()
        for trial in record.trials.values():
            times = [report["time"] for report in trial.reports]
            usual.first.extend(seconds - trial.begun for seconds in times[:1])
            usual.between.extend(later - earlier for earlier, later in itertools.pairwise(times))
        return usual


@dataclass
class Watched:
    """A trial whose worker is busy. since: when it was last heard, in seconds of the watchdog's clock. longest: for how
    long it has been silent at most, in seconds, before a report that was not its first."""

    since: float
    reports: int = 0
    longest: float = 0.0


def limit(usual: Usual, watched: Watched, hang: float, starting: bool = False, saving: bool = False) -> float:
    """For how many seconds a worker may be silent before it is taken to hang.

    hang: the least, in seconds. starting, saving: whether it has not begun to train, or writes a checkpoint; neither
    takes a share of an epoch.
    """
    if starting or saving:
        return max(WHILE_STARTING * hang, TIMES_USUAL * watched.longest)
    if watched.reports and usual.between:
        # Trials of a search may be of unlike speeds, since a small batch takes longer: its own reports count too.
        return max(hang, TIMES_USUAL * max(statistics.median(usual.between), watched.longest))
    if usual.first:
        return max(WHILE_STARTING * hang, TIMES_USUAL * statistics.median(usual.first))
    return WHILE_UNKNOWN * hang  # the stage's first report: its epochs may take hours


class Watchdog:
    """Watches the workers that run trials on Tune.

    hang_minutes: for how long a worker may always be silent. note: called with a message for each worker that is ended.
    """

    def __init__(self, hang_minutes: float = math.inf, note: Callable[[str], None] = lambda text: None):
        self._hang, self._note = 60 * hang_minutes, note
        self._usual: dict[str, Usual] = {}
        self._watched: dict[Name, Watched] = {}
        self._reasons: dict[Name, str] = {}
        self._clock, self._ticked, self._looked = 0.0, time.monotonic(), -math.inf

    def _now(self) -> float:
        """Seconds during which the driver listened. A driver that was stopped, or busy, hears its workers late."""
        now = time.monotonic()
        self._clock += min(now - self._ticked, LONGEST_TICK)
        self._ticked = now
        return self._clock

    # -- what is heard of a trial -------------------------------------------------------------------------------------

    def started(self, name: Name, record: Record) -> None:
        """A worker begins to train. record: the stage's."""
        if name[0] not in self._usual:
            self._usual[name[0]] = Usual.of(record)
        self._watched[name] = Watched(self._now())
        self._reasons.pop(name, None)

    def reported(self, name: Name) -> None:
        usual, watched, silent = self._usual.setdefault(name[0], Usual()), *self._heard(name)
        (usual.between if watched.reports else usual.first).append(silent)
        watched.longest = max(watched.longest, silent) if watched.reports else 0.0
        watched.reports += 1

    def saved(self, name: Name) -> None:
        watched, silent = self._heard(name)
        watched.longest = max(watched.longest, silent)

    def _heard(self, name: Name) -> tuple[Watched, float]:
        now = self._now()
        watched = self._watched.setdefault(name, Watched(now))
        silent, watched.since = now - watched.since, now
        return watched, silent

    # -- ending those that hang ---------------------------------------------------------------------------------------

    def look(self, controller: Any) -> None:
        """End the workers that hang. Call it often. controller: Tune's. Raises RayLostError if Ray itself has died."""
        check_own_ray()
        now = self._now()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked, busy = now, {}
        for trial, worker in busy_workers(controller):
            name = trial.config["stage"], trial.config["number"]
            busy[name] = watched = self._watched.get(name) or Watched(now)
            silent, usual = now - watched.since, self._usual.get(name[0]) or Usual()
            if silent > limit(usual, watched, self._hang, trial.status != Trial.RUNNING, trial.is_saving):
                watched.since = now  # it has as long again to be gone
                self._end(name, worker, silent)
        self._watched = busy

    def _end(self, name: Name, worker: ray.actor.ActorHandle, silent: float) -> None:
        stage, number = name
        self._reasons[name] = (f"its worker hung, without a report for {clock(silent)}, and was ended; if it was only "
                               "slow, set resources.hang_minutes higher")
        self._note(f"{stage} trial {number} has not reported for {clock(silent)}: its worker hangs and was ended, and "
                   "the trial goes on from its last checkpoint; if it was only slow, set resources.hang_minutes higher")
        ray.kill(worker)  # by the node that it runs on, with SIGKILL

    def reason(self, name: Name) -> str | None:
        """Why a trial's worker was ended; None if it was not."""
        return self._reasons.get(name)


def busy_workers(controller: Any) -> Iterator[tuple[Trial, ray.actor.ActorHandle]]:
    """Yield the trials whose workers have been asked for something and have not answered, each with its worker.

    Tune has no public way. A trial whose worker waits for the driver is not among them."""
    manager = controller._actor_manager
    for tracked, trial in list(controller._actor_to_trial.items()):
        live = manager._live_actors_to_ray_actors_resources.get(tracked)
        asked = manager._tracked_actors_to_task_futures.get(tracked) or \
            manager._tracked_actors_to_state_futures.get(tracked)
        if live and asked:
            yield trial, live[0]
