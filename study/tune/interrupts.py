"""Ctrl-C and SIGTERM while Ray Tune runs."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_collected(at_first: Callable[[], None]) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM. The first asks Tune to end its trials cleanly, the second ends it at once.

    at_first: called in the handler of the first."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        os.kill(os.getpid(), signal.SIGUSR1)  # Tune's signal for a clean end
        at_first()

    earlier = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda number, frame: None)}  # until Tune installs its own
    earlier |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
