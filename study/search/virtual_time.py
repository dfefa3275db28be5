"""Decide in virtual time, so that a search does not depend on how fast its trials happen to run.

A search has a fixed number of virtual workers, each of which takes the next trial as soon as its last one has ended. An
epoch takes one unit of virtual time. A trial can end only at its decision points: the rungs, and the last epoch. Trials
are numbered in the order in which they begin. Every decision depends on earlier trials only:

- A new trial is proposed when a virtual worker becomes free, from the trials that have ended by then in virtual time,
  where ties go to the lower number; the others count as running. Protected trials do not depend on any other, and all
  begin at once.
- A rung compares a trial with the trials whose numbers are lower by `lag` or more: others began at about the same time,
  and waiting for the slowest of them would cost more training than their accuracies save.

Real trials are reported in any order. A trial whose rung still waits for a slower trial goes on training meanwhile. No
decision waits for a later trial, so there is always a trial that can go on: this is conservative discrete-event
simulation (Chandy and Misra 1979) with real trials as its processes.
"""

import heapq
from dataclasses import dataclass, field

from kdstudy.search.rungs import Rungs


@dataclass(frozen=True)
class Decision:
    """What was decided on a trial at an epoch: continue, stop or complete."""

    number: int
    epoch: int
    decision: str


@dataclass
class _Course:
    """A trial in virtual time.

    start, end: virtual times. point: the index of its next decision point. accuracies: at the points that it has really
    reached, by index. failed: whether it really ended before the next point that it has not reached.
    """

    start: int
    protected: bool
    point: int = 0
    accuracies: dict[int, float] = field(default_factory=dict)
    failed: bool = False
    end: int | None = None


class VirtualTime:
    """Decides on the trials of a search. Trials are numbered from 0 in the order in which they begin.

    workers: virtual workers. protected: how many of the first trials are never stopped early. rungs: epochs, ascending,
    below `epochs`.
    """

    def __init__(self, workers: int, protected: int, rungs: list[int], epochs: int, reduction_factor: int,
                 lag: int | None = None):
        self._workers, self._protected = workers, protected
        self._lag = max(1, workers // 2) if lag is None else lag
        self._rungs = Rungs(rungs, reduction_factor)
        self._points = [*rungs, epochs]
        self._courses: list[_Course] = []
        self._active: set[int] = set()  # trials that have not ended in virtual time
        self._known = [0] * len(rungs)  # at each rung, of how many first trials it is known with what they reach it
        self._ended: list[tuple[int, int]] = []  # a heap of (end, trial) of the ends that no trial has followed yet
        self._ends: list[int] = []  # trials in the order of their ends, as far as it is certain

    def next_start(self) -> int | None:
        """Return the virtual time at which the next trial begins, or None while that depends on running trials."""
        needed = self._ends_before_next()
        while len(self._ends) < needed:
            if not self._ended or any(self._earliest_end(number) < self._ended[0] for number in self._active):
                return None
            self._ends.append(heapq.heappop(self._ended)[1])
        return self._courses[self._ends[needed - 1]].end if needed else 0

    def ended_before_next(self) -> set[int]:
        """Return the trials that have ended when the next trial begins, which `next_start` must have returned."""
        return set(self._ends[: self._ends_before_next()])

    def _ends_before_next(self) -> int:
        number = len(self._courses)
        return 0 if number < self._protected else max(0, number - self._workers + 1)

    def begin(self) -> None:
        """Begin the next trial, at the virtual time that `next_start` returns."""
        start = self.next_start()
        if start is None:
            raise ValueError(f"trial {len(self._courses)} cannot begin before other trials have reported")
        number = len(self._courses)
        self._active.add(number)
        self._courses.append(_Course(start, number < self._protected))

    def reach(self, number: int, epoch: int, accuracy: float) -> None:
        """Take a report: a trial's accuracy (0 to 1) at an epoch."""
        course = self._courses[number]
        for index, point in enumerate(self._points):
            if point <= epoch:
                course.accuracies.setdefault(index, accuracy)

    def fail(self, number: int) -> None:
        """Take note that a trial has failed. In virtual time it ends at the next point that it has not reached."""
        self._courses[number].failed = True

    def repeat(self, decision: Decision) -> None:
        """Take an earlier decision, read from the record. The trial must have reached the decision's epoch."""
        course = self._courses[decision.number]
        while course.end is None and self._points[course.point] <= decision.epoch:
            if self._points[course.point] == decision.epoch and decision.decision != "continue":
                self._end(decision.number)
            course.point += 1

    def settle(self) -> list[Decision]:
        """Make all decisions that are possible now, and return them."""
        made: list[Decision] = []
        for index, epoch in enumerate(self._points):
            for number in self._at(index):
                if self._courses[number].failed and index not in self._courses[number].accuracies:
                    self._end(number)
            if index < len(self._known):
                self._enter(index)
            for number in self._at(index):
                decision = self._decide(number, index)
                if decision is None:
                    continue
                if decision != "continue":
                    self._end(number)
                self._courses[number].point += 1
                made.append(Decision(number, epoch, decision))
        return made

    def _at(self, index: int) -> list[int]:
        return sorted(number for number in self._active if self._courses[number].point == index)

    def _enter(self, index: int) -> None:
        """Enter trials at a rung, in the order of their numbers."""
        while self._known[index] < len(self._courses):
            number = self._known[index]
            course = self._courses[number]
            has_passed, is_there = course.point > index, course.point == index and course.end is None
            if index in course.accuracies and (has_passed or is_there):  # not what a stopped trial did afterwards
                self._rungs.enter(number, self._points[index], course.accuracies[index])
            elif course.end is None:
                return
            self._known[index] += 1

    def _decide(self, number: int, index: int) -> str | None:
        """Return the decision on a trial at its next point, or None while it depends on running trials."""
        course, epoch = self._courses[number], self._points[index]
        if index not in course.accuracies:
            return None
        if index == len(self._points) - 1:
            return "complete"
        if course.protected:
            return "continue"
        if self._known[index] <= number - self._lag:
            return None
        passes = self._rungs.is_good_enough(epoch, course.accuracies[index], among=number - self._lag)
        return "continue" if passes else "stop"

    def _end(self, number: int) -> None:
        """End a trial at its next point."""
        course = self._courses[number]
        course.end = course.start + self._points[course.point]
        self._active.discard(number)
        heapq.heappush(self._ended, (course.end, number))

    def _earliest_end(self, number: int) -> tuple[int, int]:
        course = self._courses[number]
        return course.start + self._points[course.point], number
