"""Forecast when each trial of a study runs, by simulating stages that wait for each other, a limited number of slots,
and early stopping."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdstudy.search.virtual_time import VirtualTime

DRAWS = 9  # random draws of the trials' quality; fewer for thousands of trials
LIKENESS = 0.9  # correlation of a trial's rank at a rung with its final rank


@dataclass(frozen=True)
class Work:
    """The trials of a stage, as input of the simulation.

    protected: how many of the first trials are never stopped early. seconds: per epoch, reports included. overhead:
    seconds per trial outside its epochs. workers: if more than one, they train each model together, one trial after
    the other, while no other trial runs. needs: the stages that must end first. parallel: the virtual workers of a
    search.
    """

    name: str
    runs: int
    protected: int
    epochs: int
    rungs: tuple[int, ...]
    seconds: float
    overhead: float = 0.0
    workers: int = 1
    needs: tuple[str, ...] = ()
    parallel: int | None = None


@dataclass(frozen=True)
class Forecast:
    """The simulated schedule.

    wall: seconds until the last trial ends. used: slot-seconds in which trials run. times: start and end of each
    stage, in seconds. epochs: of each stage, summed over its trials."""

    wall: float
    used: float
    times: dict[str, tuple[float, float]]
    epochs: dict[str, float]


def forecast(works: list[Work], slots: int, reduction_factor: int, start: float = 0.0) -> Forecast:
    """Forecast the stages' schedule on `slots` slots, averaged over several random draws.

    works: the stages in order of priority. start: seconds until the first trial can start.
    """
    draws = min(DRAWS, max(1, 5000 // max(1, sum(work.runs for work in works))))
    drawn = [_Run(works, slots, reduction_factor, seed).run(start) for seed in range(draws)]
    mean = statistics.fmean
    return Forecast(
        mean(one.wall for one in drawn), mean(one.used for one in drawn),
        {work.name: tuple(mean(one.times[work.name][end] for one in drawn) for end in (0, 1)) for work in works},
        {work.name: mean(one.epochs[work.name] for one in drawn) for work in works})


class _Run:
    """One simulated study, driven by a heap of events."""

    def __init__(self, works: list[Work], slots: int, reduction_factor: int, seed: int):
        self._works = {work.name: work for work in works}
        self._slots = self._free = slots
        self._random = np.random.default_rng(seed)
        self._searches = {
            name: VirtualTime(work.parallel, work.protected, list(work.rungs), work.epochs, reduction_factor)
            for name, work in self._works.items() if work.parallel}
        self._stopped: set[tuple[str, int]] = set()
        self._begun = dict.fromkeys(self._works, 0)
        self._ended = dict.fromkeys(self._works, 0)
        self._epochs = dict.fromkeys(self._works, 0.0)
        self._goodness: dict[tuple[str, int], float] = {}
        self._events: list[tuple[float, int, str, int, int]] = []  # time, order, stage, trial, epoch
        self._used, self._times = 0.0, {}

    def run(self, start: float) -> Forecast:
        now = start
        self._fill(now)
        while self._events:
            now, _, stage, trial, epoch = heapq.heappop(self._events)
            self._reach(now, stage, trial, epoch)
            self._fill(now)
        return Forecast(now, self._used, {name: self._times.get(name, (now, now)) for name in self._works},
                        self._epochs)

    def _fill(self, now: float) -> None:
        """Start trials while slots are free."""
        for name, work in self._ready():
            if self._free or not work.runs:
                self._times.setdefault(name, (now, now))
            search = self._searches.get(name)
            while self._free >= self._taken(work) and self._begun[name] < work.runs:
                if search and search.next_start() is None:
                    break
                if search:
                    search.begin()
                trial = self._begun[name]
                self._begun[name] += 1
                self._free -= self._taken(work)
                self._goodness[name, trial] = self._random.standard_normal()
                self._go_on(now + work.overhead, work, trial, 0)
                self._used += work.workers * work.overhead

    def _taken(self, work: Work) -> int:
        """Return the number of slots that one running trial blocks."""
        return self._slots if work.workers > 1 else 1

    def _ready(self) -> Iterator[tuple[str, Work]]:
        for name, work in self._works.items():
            needed = [need for need in work.needs if need in self._works]
            if all(self._ended[need] == self._works[need].runs for need in needed):
                yield name, work

    def _go_on(self, now: float, work: Work, trial: int, epoch: int) -> None:
        upto = next((rung for rung in work.rungs if rung > epoch), work.epochs)
        seconds = (upto - epoch) * work.seconds
        self._used += work.workers * seconds
        heapq.heappush(self._events, (now + seconds, len(self._goodness), work.name, trial, upto))

    def _reach(self, now: float, stage: str, trial: int, epoch: int) -> None:
        work = self._works[stage]
        if stage in self._searches and (stage, trial) not in self._stopped:
            self._decide(stage, trial, epoch)
        if epoch < work.epochs and (stage, trial) not in self._stopped:
            self._go_on(now, work, trial, epoch)
            return
        self._free += self._taken(work)
        self._ended[stage] += 1
        self._epochs[stage] += epoch
        self._times[stage] = (self._times[stage][0], now)

    def _decide(self, stage: str, trial: int, epoch: int) -> None:
        search = self._searches[stage]
        luck = self._random.standard_normal() if epoch < self._works[stage].epochs else 0.0
        search.reach(trial, epoch, LIKENESS * self._goodness[stage, trial] + (1 - LIKENESS**2) ** 0.5 * luck)
        self._stopped |= {(stage, decision.number) for decision in search.settle() if decision.decision == "stop"}
