"""How slow the machine is just now, so that a test of how long something takes says the same on any machine."""

import time
from collections.abc import Callable

import numpy as np

QUIET = 0.25  # seconds that `_work` takes on one free core of the machine on which the tests' limits were set


def slowness(clock: Callable[[], float] = time.monotonic) -> float:
    """How many times as long as there a fixed piece of work takes here and now; at least 1.

    `clock`: `time.monotonic`, which other processes slow down too, or `time.process_time`.
    """
    began = clock()
    _work()
    return max(1.0, (clock() - began) / QUIET)


def _work() -> None:
    """Half of it in the interpreter, half in NumPy, as the things are that the tests time."""
    total = 0
    for number in range(1_700_000):
        total += number * number % 7
    values = np.linspace(0, 1, 1_000_000)
    for _ in range(10):
        values = np.sort(np.sin(1e4 * values))
