"""Fair timing: what is compared takes turns, so that whatever slows the machine down slows all of it down."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdstudy.export import deployment


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another, in the same round. median, low, high: over the rounds, the
    latter two being quartiles. seconds: of each, the median."""

    median: float
    low: float
    high: float
    seconds: dict[str, float]
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def compare(things: Mapping[str, Callable[[], Any]], base: str, device: torch.device, seconds: float,
            least: int = 5) -> dict[str, Ratio]:
    """Time each thing once per round, in an order that changes, until the time is over.

    base: the name of what all others are divided by. least: rounds that are made in any case, after one that does not
    count."""
    names, found = list(things), {name: [] for name in things}
    for thing in things.values():
        thing()
    ends, rounds = time.monotonic() + seconds, 0
    while rounds < least or time.monotonic() < ends:
        for name in names[rounds % len(names):] + names[:rounds % len(names)]:
            found[name].append(timed(things[name], device))
        rounds += 1
    return {name: ratio(found[name], found[base], name, base) for name in names if name != base}


def ratio(own: list[float], others: list[float], name: str, base: str) -> Ratio:
    """That of times in the same rounds."""
    quotients = [one / other for one, other in zip(own, others, strict=True)]
    low, median, high = statistics.quantiles(quotients, n=4) if len(quotients) > 1 else quotients * 3
    return Ratio(median, low, high, {name: statistics.median(own), base: statistics.median(others)}, len(own))


def timed(thing: Callable[[], Any], device: torch.device) -> float:
    """Seconds: on a CPU those of this thread on the processor, which other processes do not lengthen much; on a GPU
    until it has ended."""
    if device.type == "cpu":
        began = time.thread_time()
        thing()
        return time.thread_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    thing()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {"device": deployment.hardware(device), "processor": deployment.hardware(torch.device("cpu")),
            "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads()}
