"""Ctrl-C and SIGTERM while Ray Tune runs."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_collected() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM. The first asks Tune to end its trials cleanly, the second ends it at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        os.kill(os.getpid(), signal.SIGUSR1)  # Tune's signal for a clean end

    earlier = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda number, frame: None)}  # until Tune installs its own
    earlier |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
