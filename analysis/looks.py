"""Which look at the test images a study's comparison is, and at which level it tests.

A look is made whenever both arms are confirmed: it compares one configuration of each arm on some number of seeds.
What `confirm.seeds` said before the first look is the plan. Its looks, at more and more seeds of that same pair, share
5 % (`kdstudy.analysis.spending`). They use it up, so looks outside the plan share another 0.5 %: the first has half of
it, the next a quarter, and so on. However many are added, and however they depend on each other, all looks together
find a gain or a loss where there is none in at most 5.5 % of the studies (Bonferroni).

The done-mark of the distillation's confirmation keeps the plan, and the looks before the present one, which its rows
are. Studies from before this was kept have neither: their plan was the number of seeds that they ran first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from kdstudy.analysis.gain import SIGNIFICANT, gain
from kdstudy.analysis.spending import nominal_levels, spent
from kdstudy.analysis.study_files import StudyFiles

UNPLANNED = 0.005  # the level that all looks outside the plan share
FEWEST_SEEDS = 2  # of a look; one seed allows no interval, so that nothing is tested and no level spent
SMALLEST = 1e-12  # no level is smaller, however many looks there are, so that every interval has an end


@dataclass(frozen=True)
class Compared:
    """What a look compares: one configuration of each arm, by its parameters, on so many paired seeds."""

    seeds: int
    baseline: dict[str, Any]
    distilled: dict[str, Any]

    def is_pair_of(self, other: Compared) -> bool:
        return (self.baseline, self.distilled) == (other.baseline, other.distilled)


@dataclass(frozen=True)
class Look:
    """A study's present look. number: among all looks at its test images, from 1. level: at which it tests, two-sided.
    plan: the numbers of seeds that were planned. planned: whether this look is one of these. earlier: the numbers of
    seeds and the levels of earlier looks at the same pair of configurations, with fewer seeds."""

    number: int
    seeds: int
    level: float
    plan: tuple[int, ...]
    planned: bool
    earlier: tuple[tuple[int, float], ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether this is the only look, so that it has all of the 5 %."""
        return self.number == 1 and self.plan == (self.seeds,)


def present_look(study: StudyFiles) -> Look:
    """The look that a study's confirmed rows are. The confirmation must be done."""
    done, now = study.done("confirm"), compared_now(study)
    if now.seeds < FEWEST_SEEDS:
        return Look(1, now.seeds, SIGNIFICANT, (now.seeds,), True)
    past = [Compared(look["seeds"], look["baseline"], look["distilled"]) for look in done.get("looks") or []
            if look["seeds"] >= FEWEST_SEEDS]
    looks = past if now in past else [*past, now]
    sizes = [size for size in done.get("plan") or [] if size >= FEWEST_SEEDS]
    plan, place = tuple(sorted(sizes or [looks[0].seeds])), looks.index(now)
    found = levels(plan, looks)
    earlier = tuple((look.seeds, level) for look, (level, _) in zip(looks[:place], found, strict=False)
                    if look.is_pair_of(now) and 1 < look.seeds < now.seeds)
    level, planned = found[place]
    return Look(place + 1, now.seeds, level, plan, planned, earlier)


def primary_gain(study: StudyFiles) -> dict[str, Any] | None:
    """The gain that is the study's answer, at its present look; None with one seed. The confirmation must be done."""
    look = present_look(study)
    return _gain_of(study, look.seeds, look.level)


def first_shown(study: StudyFiles) -> dict[str, Any] | None:
    """The gain or loss of the first earlier look at this pair that found one; None where none did, or there is none."""
    found = (_gain_of(study, seeds, level) for seeds, level in present_look(study).earlier)
    return next((one for one in found if one["p"] < SIGNIFICANT), None)


def _gain_of(study: StudyFiles, seeds: int, level: float) -> dict[str, Any] | None:
    own, baseline = study.confirmed["distilled", study.primary], study.confirmed["baseline", "tuned"]
    return gain(own[:seeds], baseline[:seeds], level=level)


def compared_now(study: StudyFiles) -> Compared:
    """What the confirmed rows compare."""
    baseline, distilled = study.confirmed_row("baseline"), study.confirmed_row("distilled", study.primary)
    return Compared(len(distilled["runs"]), baseline["parameters"], distilled["parameters"])


def levels(plan: Sequence[int], looks: Sequence[Compared]) -> list[tuple[float, bool]]:
    """The level of each look, in the order in which they were made, and whether it was planned."""
    planned: list[int] = []
    for look in looks:
        if look.is_pair_of(looks[0]) and look.seeds in plan and look.seeds > max(planned, default=0):
            planned.append(look.seeds)
    shares, rest, found = dict(zip(planned, planned_levels(tuple(plan), tuple(planned)), strict=True)), UNPLANNED, []
    for look in looks:
        share = shares.pop(look.seeds, None) if look.is_pair_of(looks[0]) else None
        if share is None:
            rest /= 2
        found.append((max(SMALLEST, rest if share is None else share), share is not None))
    return found


@cache
def planned_levels(plan: tuple[int, ...], made: tuple[int, ...]) -> tuple[float, ...]:
    """The levels of the planned looks that were made, by their numbers of seeds: together 5 % once the last is made."""
    if not made:
        return ()
    if made == plan[-1:]:
        return (SIGNIFICANT,)
    information = [seeds / max(plan) for seeds in made]
    return tuple(map(float, nominal_levels(information, spent(information, SIGNIFICANT))))
