"""How long models take for a forward pass, measured in turns: a, b, a, b, …, so that whatever else the machine does
meets all of them alike."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from kdstudy.trainables.messages import one_line

BATCHES = (1, 32)
REPETITIONS = 21  # of each model at each batch size, if there is time
FEWEST = 3  # as many where the models are slow
SHORTEST = 0.02  # seconds of a repetition, which is so many passes: a clock alone is no measure of 100 microseconds
MOST_PASSES = 100
SLOW = 1.0  # seconds: a pass that takes as long needs no second one to warm up
SECONDS = {1: 1.5, 32: 3.0}  # for the repetitions at each batch size beyond the fewest
MOST_SECONDS = 16.0  # for everything; what would take longer is left out

Predict = Callable[[torch.Tensor], Any]


@dataclass
class Timed:
    """A model at one batch size. seconds: of a pass, for each repetition. passes: in a repetition."""

    predict: Predict
    images: torch.Tensor
    passes: int = 1
    seconds: list[float] = field(default_factory=list)

    def run(self) -> float:
        """The seconds of a pass, as a mean over `passes`."""
        _wait(self.images)
        started = time.perf_counter()
        for _ in range(self.passes):
            self.predict(self.images)
        _wait(self.images)
        return (time.perf_counter() - started) / self.passes


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward pass: median, and low and high, the quartiles, over so many repetitions."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Latency":
        low, median, high = (1000 * float(value) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
        return cls(median, low, high, len(seconds))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Latencies:
    """What was measured. seconds: of each repetition, by model and batch size, of which models of one batch size took
    turns. reasons: why a model has none at a batch size."""

    seconds: dict[tuple[str, int], list[float]]
    reasons: dict[tuple[str, int], str]

    def of(self, name: str, batch: int) -> Latency | None:
        seconds = self.seconds.get((name, batch))
        return Latency.of(seconds) if seconds else None

    def ratio(self, name: str, other: str, batch: int) -> Latency | None:
        """How many times longer the first takes than the second, over the pairs of neighbouring repetitions."""
        pairs = [self.seconds.get((one, batch)) for one in (name, other)]
        if not all(pairs):
            return None
        ratios = [first / second for first, second in zip(*pairs, strict=True)]
        low, median, high = map(float, np.quantile(ratios, (0.25, 0.5, 0.75)))
        return Latency(median, low, high, len(ratios))


@torch.inference_mode()
def measure(models: Mapping[str, tuple[Predict, tuple[int, ...]]], device: torch.device) -> Latencies:
    """Time models on random images, fp32, in 0..1.

    models: by name, a function of images (B, C, H, W), and (C, H, W). It takes MOST_SECONDS at most, apart from a pass
    that takes much longer than those before it let expect. A model that cannot compute a batch is left out.
    """
    found, begun = Latencies({}, {}), time.perf_counter()
    for batch in BATCHES:
        ready = {}
        for name, (predict, shape) in models.items():
            left = MOST_SECONDS - (time.perf_counter() - begun)
            known = found.of(name, 1)
            if known and (expected := known.median / 1000 * batch) * 2 > left:
                found.reasons[name, batch] = (f"a batch of {batch} was not measured: a pass would take about "
                                              f"{expected:.0f} s here")
                continue
            try:
                ready[name] = _warmed_up(predict, torch.rand(batch, *shape, device=device))
            except RuntimeError as error:  # such as too little memory
                found.reasons[name, batch] = f"a batch of {batch} cannot be computed here: {one_line(error)}"
        _take_turns(ready, SECONDS[batch], begun + MOST_SECONDS)
        found.seconds.update({(name, batch): timed.seconds for name, timed in ready.items()})
    return found


def _warmed_up(predict: Predict, images: torch.Tensor) -> Timed:
    timed = Timed(predict, images)
    if (seconds := timed.run()) < SLOW:
        seconds = timed.run()  # the first one also allocates memory and chooses algorithms
    timed.passes = min(MOST_PASSES, math.ceil(SHORTEST / seconds))
    return timed


def _take_turns(models: Mapping[str, Timed], seconds: float, latest: float) -> None:
    """Repeat all models in turns, for so many seconds or the fewest times, but not beyond the latest time."""
    begun = time.perf_counter()
    for repetition in range(REPETITIONS if models else 0):
        now = time.perf_counter()
        took = (now - begun) / max(repetition, 1)
        if repetition and (now + took > latest or (repetition >= FEWEST and now - begun + took > seconds)):
            break
        for timed in models.values():
            timed.seconds.append(timed.run())


def _wait(images: torch.Tensor) -> None:
    """A GPU computes while the program goes on."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
