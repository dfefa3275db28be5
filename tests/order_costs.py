"""What deciding in virtual time costs, against deciding at once: wall time, discarded training, and regret.

Searches by the project's own code in simulated time. Trials differ in speed by up to 30 % either way, and one in twenty
takes three times as long. A trial's accuracy at an epoch depends on its parameters, its number and the epoch alone.

    python tests/order_costs.py            # wall time at 2, 8, 32 and 128 slots
    python tests/order_costs.py --regret   # regret over the surfaces of known_answers.py
"""

import argparse
import heapq
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from known_answers import (
    DEFAULT,
    EPOCHS,
    IMAGES,
    REPORT_NOISE,
    RUNGS,
    SPACE,
    TRIAL_NOISE,
    MemoryRecord,
    accuracy,
)
from surfaces import FAMILIES

from kdstudy.search.manager import METRIC, TrialManager
from kdstudy.search.proposer import OptunaProposer
from kdstudy.search.runs import winner

STRAGGLERS, SLOWER = 0.05, 3.0


@dataclass(frozen=True)
class Outcome:
    """A simulated search. wall: in epochs at normal speed. epochs: trained in all. discarded: of these, in vain. idle:
    share of the slots' time in which they had nothing to do. reached: the winner's true accuracy at the last epoch,
    percent."""

    wall: float
    epochs: int
    discarded: int
    idle: float
    reached: float


def search(surface: Callable, seed: int, trials: int, protected: int, slots: int, parallel: int | None,
           spread: float = 0.3, stragglers: float = STRAGGLERS) -> Outcome:
    """Simulate a search on so many slots. parallel: virtual workers; None decides at once. spread: of the speeds."""
    record = MemoryRecord()
    proposer = OptunaProposer(SPACE, DEFAULT, trials, protected - 1, seed, "distill", parallel or slots)
    manager = TrialManager(record, proposer, epochs=EPOCHS, rungs=RUNGS, parallel=parallel)
    events: list[tuple[float, int, int]] = []  # when, trial, epoch
    paces: dict[int, float] = {}
    busy = now = 0.0

    def fill() -> None:
        while len(events) < slots and (trial := manager.next()) is not None:
            random = np.random.default_rng([seed, 1, trial.number])
            paces[trial.number] = random.uniform(1 - spread, 1 + spread) * (
                SLOWER if random.random() < stragglers else 1)
            heapq.heappush(events, (now + paces[trial.number], trial.number, 1))

    fill()
    while events:
        now, number, epoch = heapq.heappop(events)
        busy += paces[number]
        value = observed(surface, seed, number, record.trials[number].parameters, epoch)
        if manager.report(number, {"epoch": epoch, METRIC: value, "validation_loss": 1 - value}) == "continue":
            heapq.heappush(events, (now + paces[number], number, epoch + 1))
        fill()
    assert manager.complete
    discarded = sum(len(trial.discarded) for trial in record.trials.values())
    epochs = discarded + sum(trial.epoch for trial in record.trials.values())
    reached = 100 * accuracy(surface, winner(record).parameters, EPOCHS)
    return Outcome(now, epochs, discarded, 1 - busy / (slots * now), reached)


def observed(surface: Callable, seed: int, number: int, parameters: dict[str, float], epoch: int) -> float:
    """A trial's validation accuracy, 0 to 1. Its luck depends on its number alone, that of a report on the epoch too.
    """
    luck = np.random.default_rng([seed, 2, number]).normal(0, TRIAL_NOISE)
    luck += np.random.default_rng([seed, 3, number, epoch]).normal(0, REPORT_NOISE)
    return round(accuracy(surface, parameters, epoch, luck) * IMAGES) / IMAGES


SEARCHES = {2: (20, 9), 8: (60, 12), 32: (240, 12), 128: (960, 12)}  # slots: trials, protected ones


def walls(studies: int, sizes: list[int]) -> None:
    """Print wall times, each as the ratio to that of the same studies when every decision is made at once."""
    print("| slots | trials | search.parallel | speeds ± 30 %: wall time | discarded epochs | idle (at once) "
          "| and stragglers: wall time | discarded epochs | idle (at once) |\n"
          "|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for slots in sizes:
        trials, protected = SEARCHES[slots]
        at_once = {share: _searches(studies, trials, protected, slots, None, share) for share in (0.0, STRAGGLERS)}
        for parallel in (slots, 2 * slots, 3 * slots, 4 * slots):
            cells = [_cell(_searches(studies, trials, protected, slots, parallel, share), others)
                     for share, others in at_once.items()]
            print(f"| {slots} | {trials} | {parallel} | {' | '.join(cells)} |", flush=True)


def _searches(studies: int, trials: int, protected: int, slots: int, parallel: int | None,
              stragglers: float) -> list[Outcome]:
    return [search(FAMILIES["aligned"], seed, trials, protected, slots, parallel, stragglers=stragglers)
            for seed in range(studies)]


def _cell(virtual: list[Outcome], at_once: list[Outcome]) -> str:
    # Which trials are stopped differs a little, so that what is compared is the time for the same training.
    ratios = [(one.wall / (one.epochs - one.discarded)) / (other.wall / other.epochs)
              for one, other in zip(virtual, at_once, strict=True)]
    discarded = sum(one.discarded for one in virtual) / sum(one.epochs for one in virtual)
    idle = [_percent(statistics.mean(one.idle for one in outcomes)) for outcomes in (virtual, at_once)]
    return f"{_signed(statistics.median(ratios))} | {_percent(discarded)} | {idle[0]} ({idle[1]})"


def regrets(studies: int) -> None:
    """Print the mean regret over all surfaces: points of accuracy between the best and the search's winner."""
    rules = {"at once, 1 slot": (1, None), "at once, 4 slots": (4, None), "2": (2, 2), "4": (4, 4), "6": (4, 6),
             "8": (4, 8), "16": (4, 16)}
    print("| trials | search.parallel | regret, points | against at once on 4 slots (standard error) | epochs |\n"
          "|---:|---:|---:|---:|---:|")
    grid = np.meshgrid(*[np.linspace(0, 1, 41)] * 3, indexing="ij")
    best = {name: float((100 / (1 + np.exp(-surface(*grid, 1.0)))).max()) for name, surface in FAMILIES.items()}
    for trials, protected in ((12, 6), (20, 9), (60, 12)):
        found: dict[str, np.ndarray] = {}
        epochs: dict[str, float] = {}
        for rule, (slots, parallel) in rules.items():
            outcomes = [(name, search(surface, seed, trials, protected, slots, parallel))
                        for (name, surface), seed in itertools.product(FAMILIES.items(), range(studies))]
            found[rule] = np.array([best[name] - outcome.reached for name, outcome in outcomes])
            epochs[rule] = statistics.mean(outcome.epochs for _, outcome in outcomes)
        for rule in rules:
            more = found[rule] - found["at once, 4 slots"]
            print(f"| {trials} | {rule} | {found[rule].mean():.2f} "
                  f"| {more.mean():+.2f} ({more.std(ddof=1) / len(more) ** 0.5:.2f}) | {epochs[rule]:.0f} |",
                  flush=True)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regret", action="store_true", help="regret instead of wall time")
    parser.add_argument("--slots", type=int, nargs="+", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--studies", type=int, default=5, help="of each kind")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.regret:
        regrets(arguments.studies)
    else:
        walls(arguments.studies, arguments.slots)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
