"""Tests of a gain where there is none, over new seeds and new images.

    python tests/known_nulls.py --simulations 2000
    python tests/known_nulls.py --looks --simulations 10000
    python tests/known_nulls.py --pairs
    python tests/known_nulls.py --trends
    python tests/known_nulls.py --teachers

Each simulation draws two arms that are equally good in truth, their seeds and the test images, and asks every test
whether one arm is better. At nominal 5 % a sound one says so 5 times in 100.

An image is right where the skill of the seed plus the ease of the image (shared by both arms) plus what this arm
happens to find easy in it (its lean) exceed noise of that seed and image. Accuracies and spreads are of the size that
small image classifiers show: 86 to 89 %. In `seeds and images` seeds have a standard deviation of 0.8 points and the
arms a moderate lean; in `mostly images` it is 0.16 points and the lean is strong, as between different architectures;
in `seeds alone` it is 0.8 points and there is no lean, so that a test over seeds alone is right.

The different numbers of seeds and images are the first rows and columns of the same draws. 2000 simulations of the
three nulls take about a minute on one core.

With --looks, each study looks at its test images several times, and stops at the first look that finds a gain or a
loss: at 3, 5 and 10 seeds, planned or not, or at three winners of equally good searches. Then arms differ by a true
gain, which shows how often each design finds it and how many seeds it takes.

With --pairs, the interval for how often one of two equally good runs looks better by some gain, over all pairs of seeds
(`significance.pair_share`, for the audit), beside a percentile bootstrap over the seeds: how often it holds the truth.

With --teachers, the second arm learns from several teachers, whose skill and leans differ, and is as good as the first
on average over teachers. Beside the interval over all of them stand that of the first teacher alone, and that which
counts these teachers as the only ones: both are right for these teachers, and wrong for teachers in general.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from kdstudy.analysis.gain import gain
from kdstudy.analysis.looks import Compared, levels, planned_levels
from kdstudy.analysis.significance import Interval, crossed_interval, mcnemar, pair_share, paired_t_interval
from kdstudy.analysis.spending import nominal_levels
from kdstudy.analysis.three_way import three_way_interval
from kdstudy.analysis.trend import slope

SEEDS, IMAGES, LEVEL = (3, 5, 10), (360, 2000, 10000), 0.05
RESAMPLES = 2000
NOISE = 0.7  # of one seed on one image; an image's ease has a standard deviation of 1


@dataclass(frozen=True)
class Null:
    """What differs between two arms that are equally good: standard deviations on the scale of an image's ease."""

    lean: float  # of an arm on an image
    skill: float  # of a seed
    level: float = 1.5  # the mean skill


NULLS = {"seeds and images": Null(lean=0.35, skill=0.05), "mostly images": Null(lean=0.6, skill=0.01),
         "seeds alone": Null(lean=0.0, skill=0.05)}


def draw(null: Null, seeds: int, images: int, rng: np.random.Generator, arms: int = 2, lift: float = 0.0) -> np.ndarray:
    """Which images each seed of equally good arms gets right, (arms, seeds, images) bool.

    lift: the skill that all arms but the first have in addition; see `lift_for`."""
    ease = rng.standard_normal((1, 1, images), np.float32)
    lean = np.float32(null.lean) * rng.standard_normal((arms, 1, images), np.float32)
    skill = np.float32(null.level) + np.float32(null.skill) * rng.standard_normal((arms, seeds, 1), np.float32)
    skill[1:] += np.float32(lift)
    noise = rng.standard_normal((arms, seeds, images), np.float32)
    return np.float32(NOISE) * noise < skill + (ease + lean)


class Bootstrap:
    """Whether the percentile interval of seeds drawn with replacement leaves out zero."""

    def __init__(self, seeds: int, rng: np.random.Generator) -> None:
        self.weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds

    def rejects(self, differences: np.ndarray) -> bool:
        low, high = np.quantile(self.weights @ differences, [LEVEL / 2, 1 - LEVEL / 2])
        return bool(low > 0 or high < 0)


def satterthwaite_alone(interval: Interval) -> float:
    """The crossed interval's p-value were it not bounded by that of the seeds alone."""
    return float(2 * stats.t.sf(abs(interval.mean) / interval.standard_error, interval.degrees_of_freedom))


def rejections(correct: np.ndarray, bootstrap: Bootstrap) -> dict[str, bool]:
    """Which tests on paired seeds see a gain between two arms, (2, seeds, images) bool."""
    differences = correct[0].astype(np.float64) - correct[1]
    crossed, of_seeds = crossed_interval(differences), differences.mean(1)
    return {
        "crossed": crossed.p < LEVEL,
        "crossed, not bounded by the seeds' own": satterthwaite_alone(crossed) < LEVEL,
        "paired t over seeds": paired_t_interval(of_seeds).p < LEVEL,
        "bootstrap over seeds": bootstrap.rejects(of_seeds),
    }


def false_gains(null: Null, simulations: int, rng: np.random.Generator, seeds: tuple[int, ...] = SEEDS,
                images: tuple[int, ...] = IMAGES) -> pd.DataFrame:
    """A row per number of seeds and images: the share of simulations in which each test finds a gain."""
    bootstraps = {count: Bootstrap(count, rng) for count in seeds}
    rows = []
    for _ in range(simulations):
        correct = draw(null, max(seeds), max(images), rng)
        one_pair = {size: mcnemar(*correct[:, 0, :size]).p < LEVEL for size in images}
        rows += [{"seeds": count, "images": size, **rejections(correct[:, :count, :size], bootstraps[count]),
                  "McNemar, one pair": one_pair[size]}
                 for count in seeds for size in images]
    return pd.DataFrame(rows).groupby(["seeds", "images"]).mean()


def false_families(null: Null, simulations: int, rng: np.random.Generator, seeds: int, images: int,
                   rows: int = 3) -> dict[str, float]:
    """The share of simulated tables in which any of `rows` rows, all as good as one baseline, shows a gain or a loss.

    `each alone`: every interval has 95 %, as if it were the only one. `together`: as kdstudy widens them.
    """
    found = {"each alone": 0, "together": 0}
    for _ in range(simulations):
        baseline, *others = draw(null, seeds, images, rng, arms=1 + rows)
        for name, comparisons in (("each alone", 1), ("together", rows)):
            found[name] += any(gain(row, baseline, comparisons)["p"] < LEVEL for row in others)
    return {name: count / simulations for name, count in found.items()}


# -- several looks ----------------------------------------------------------------------------------------------------

PLAN = (3, 5, 10)
WINNERS = 3
GAINS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)  # true ones, percentage points
LEAST = 2.0  # the `confirm.gain` of the simulated studies that have one


def lift_for(null: Null, points: float) -> float:
    """The skill that raises an arm's accuracy over all seeds and images by so many percentage points."""
    spread = np.sqrt(1 + null.lean**2 + null.skill**2 + NOISE**2)
    accuracy = stats.norm.cdf(null.level / spread)
    return float(stats.norm.ppf(accuracy + points / 100) * spread - null.level)


def obrien_fleming_levels(plan: tuple[int, ...]) -> tuple[float, ...]:
    """The levels of planned looks by Lan and DeMets' O'Brien-Fleming-type function, for comparison."""
    information = np.array(plan) / max(plan)
    each_side = 2 * stats.norm.sf(stats.norm.isf(LEVEL / 4) / np.sqrt(information))
    return tuple(nominal_levels(information, 2 * each_side))


def levels_unplanned(seeds: tuple[int, ...], winners: int) -> tuple[float, ...]:
    """The levels of looks at more and more seeds, and then at other winners, of which the first alone was planned."""
    looks = [Compared(count, {}, {"winner": winner}) for winner in range(winners) for count in seeds]
    return tuple(level for level, _ in levels(seeds[:1], looks))


def crossed_p(correct: np.ndarray, seeds: int, winner: int = 1) -> float:
    """The p-value of one winner's gain over the baseline, the first of the arms, on the first seeds."""
    return crossed_interval(correct[winner, :seeds].astype(float) - correct[0, :seeds]).p


def false_looks(null: Null, simulations: int, rng: np.random.Generator, images: int) -> dict[str, float]:
    """The share of simulated studies in which any look finds a gain or a loss, by how its looks are counted."""
    designs = {
        f"fixed {PLAN[-1]} seeds": (0.0,) * (len(PLAN) - 1) + (LEVEL,),
        "3, 5, 10 seeds, each at 5 %": (LEVEL,) * len(PLAN),
        "planned": planned_levels(PLAN, PLAN),
        "planned, O'Brien-Fleming": obrien_fleming_levels(PLAN),
        "not planned": levels_unplanned(PLAN, 1),
    }
    of_winners = {"three winners, each at 5 %": (LEVEL,) * WINNERS,
                  "three winners": levels_unplanned((5,), WINNERS)}
    found = dict.fromkeys([*designs, *of_winners], 0)
    for _ in range(simulations):
        correct = draw(null, max(PLAN), images, rng, arms=1 + WINNERS)
        by_seeds = [crossed_p(correct, seeds) for seeds in PLAN]
        by_winner = [by_seeds[1], *(crossed_p(correct, 5, winner) for winner in range(2, WINNERS + 1))]
        for named, values in ((designs, by_seeds), (of_winners, by_winner)):
            for name, shares in named.items():
                found[name] += any(p < level for p, level in zip(values, shares, strict=True))
    return {name: count / simulations for name, count in found.items()}


def found_by(null: Null, points: float, simulations: int, rng: np.random.Generator,
             images: int) -> dict[str, tuple[float, float]]:
    """By design, how often a true gain is found as a gain, and the mean number of seeds that were run."""
    alone = {f"fixed {seeds}": ((seeds, LEVEL),) for seeds in PLAN}
    planned = {"planned": planned_levels(PLAN, PLAN), "O'Brien-Fleming": obrien_fleming_levels(PLAN)}
    designs = alone | {name: tuple(zip(PLAN, shares, strict=True)) for name, shares in planned.items()}
    with_gain = f"planned, confirm.gain = {LEAST:g}"
    found, seeds_run = Counter(), Counter()
    lift = lift_for(null, points)
    for _ in range(simulations):
        correct = draw(null, max(PLAN), images, rng, lift=lift)
        differences = 100 * (correct[1].astype(float) - correct[0])
        for name, looks in [*designs.items(), (with_gain, designs["planned"])]:
            for seeds, level in looks:
                interval = crossed_interval(differences[:seeds], 1 - level, unit=100.0)
                if not interval.low <= 0 <= interval.high or (name == with_gain and interval.high < LEAST):
                    break
            found[name] += interval.low > 0
            seeds_run[name] += seeds
    return {name: (found[name] / simulations, seeds_run[name] / simulations) for name in [*designs, with_gain]}


def show_looks(simulations: int, rng: np.random.Generator, show: Callable[[str], None]) -> None:
    show("\nlevels of the looks at " + ", ".join(f"{seeds} seeds" for seeds in PLAN) + ", percent")
    for name, shares in (("planned", planned_levels(PLAN, PLAN)), ("not planned", levels_unplanned(PLAN, 1)),
                         ("planned, O'Brien-Fleming", obrien_fleming_levels(PLAN))):
        show(f"{name}: {', '.join(f'{100 * share:.2g}' for share in shares)}")
    show(f"\nstudies in which any look finds a gain or a loss where there is none, percent; {simulations} simulations, "
         f"binomial standard error {100 * binomial_error(simulations):.2f}\n")
    for index, (name, images) in enumerate((name, images) for name in NULLS for images in IMAGES[:2]):
        rates = false_looks(NULLS[name], simulations, rng, images)
        if not index:
            show("| null | images | " + " | ".join(rates) + " |\n|---|" + "---:|" * (1 + len(rates)))
        show(f"| {name} | {images:,} | " + " | ".join(f"{100 * rate:.1f}" for rate in rates.values()) + " |")
    null, images, fewer = "seeds and images", 2000, max(1, simulations // 5)
    show(f"\na true gain, {null}, {images:,} images, {fewer} simulations: found in percent, mean number of seeds\n")
    for index, points in enumerate(GAINS):
        designs = found_by(NULLS[null], points, fewer, rng, images)
        if not index:
            show("| gain | " + " | ".join(designs) + " |\n|---:|" + "---:|" * len(designs))
        cells = [f"{100 * rate:.1f}, {seeds:.1f}" for rate, seeds in designs.values()]
        show(f"| {points:g} | " + " | ".join(cells) + " |")


def false_trends(null: Null, simulations: int, rng: np.random.Generator, seeds: int, images: int,
                 studies: int) -> float:
    """The share of simulated series of studies, none of which gains anything, in which the gain is found to change."""
    found = 0
    for _ in range(simulations):
        arms = draw(null, seeds, images, rng, arms=2 * studies)
        found += slope([2**place for place in range(studies)], arms[:studies], arms[studies:])["p"] < LEVEL
    return found / simulations


def show_trends(simulations: int, rng: np.random.Generator, show: Callable[[str], None]) -> None:
    show(f"\nseries of studies in which the gain is found to change where it does not, percent; {simulations} "
         f"simulations, binomial standard error {100 * binomial_error(simulations):.2f}\n")
    sizes = [(studies, images) for studies in (2, 3, 5) for images in IMAGES[:2]]
    show("| null | seeds | " + " | ".join(f"{studies} studies, {images:,} images" for studies, images in sizes) + " |")
    show("|---|" + "---:|" * (1 + len(sizes)))
    for name, null in NULLS.items():
        for seeds in (3, 5):
            rates = [false_trends(null, simulations, rng, seeds, images, studies) for studies, images in sizes]
            show(f"| {name} | {seeds} | " + " | ".join(f"{100 * rate:.1f}" for rate in rates) + " |")


# -- several teachers -------------------------------------------------------------------------------------------------

DESIGNS = ((2, 3), (3, 3), (3, 5), (5, 5))  # teachers, seeds
TAUGHT = ("seeds and images", "seeds alone")  # the nulls where teachers can matter
TEACHER_SPREADS = (0.0, 1.0, 2.0)  # of the teachers' skill, in standard deviations of the seeds' part of a gain


def draw_taught(null: Null, teachers: int, seeds: int, images: int, spread: float,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which images a baseline and the students of equally good teachers get right, (seeds, images) and (teachers,
    seeds, images) bool. Half of the variance of what the students find easy comes from their teacher."""
    noise, ease = rng.standard_normal((1 + teachers, seeds, images)), rng.standard_normal((1, 1, images))
    lean = null.lean * rng.standard_normal((2, 1, images))
    own = null.lean * rng.standard_normal((teachers, 1, images))
    of_seed = null.skill * rng.standard_normal((2, seeds, 1))
    of_teacher = spread * np.sqrt(2) * null.skill * rng.standard_normal((teachers, 1, 1))
    skill = null.level + np.concatenate([of_seed[:1] + lean[:1],
                                         of_seed[1:] + (lean[1:] + own) / np.sqrt(2) + of_teacher])
    right = skill + ease > NOISE * noise
    return right[0], right[1:]


def false_taught(null: Null, teachers: int, seeds: int, images: int, spread: float, simulations: int,
                 rng: np.random.Generator) -> dict[str, float]:
    """The share of simulations in which each interval finds a gain or a loss."""
    found = Counter()
    for _ in range(simulations):
        baseline, taught = draw_taught(null, teachers, seeds, images, spread, rng)
        differences = taught.astype(float) - baseline
        found["over teachers"] += three_way_interval(differences).p < LEVEL
        found["first teacher alone"] += crossed_interval(differences[0]).p < LEVEL
        found["these teachers alone"] += crossed_interval(differences.mean(0)).p < LEVEL
    return {name: count / simulations for name, count in found.items()}


def show_teachers(simulations: int, rng: np.random.Generator, show: Callable[[str], None], images: int = 2000) -> None:
    show(f"\nfalse gains in percent at nominal {100 * LEVEL:.0f} %, {images} images, {simulations} simulations, "
         f"binomial standard error {100 * binomial_error(simulations):.2f}\n")
    show("| null | teachers, seeds | teachers' sd / seeds' | over teachers | first teacher alone "
         "| these teachers alone |\n|---|---:|---:|---:|---:|---:|")
    for name in TAUGHT:
        for teachers, seeds in DESIGNS:
            for spread in TEACHER_SPREADS:
                rates = false_taught(NULLS[name], teachers, seeds, images, spread, simulations, rng)
                show(f"| {name} | {teachers}, {seeds} | {spread:g} | "
                     + " | ".join(f"{100 * rate:.1f}" for rate in rates.values()) + " |")


def binomial_error(simulations: int) -> float:
    """The standard error of a rate that is LEVEL in truth."""
    return float(np.sqrt(LEVEL * (1 - LEVEL) / simulations))


def table(rates: pd.DataFrame) -> str:
    """Markdown; rates in percent."""
    lines = ["| seeds | images | " + " | ".join(rates.columns) + " |", "|" + "---:|" * (2 + len(rates.columns))]
    lines += [f"| {seeds} | {images:,} | " + " | ".join(f"{100 * rate:.1f}" for rate in row) + " |"
              for (seeds, images), row in zip(rates.index, rates.to_numpy(), strict=True)]
    return "\n".join(lines)


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="per null")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--looks", action="store_true", help="several looks at the test images, instead")
    parser.add_argument("--pairs", action="store_true", help="shares of pairs of runs, instead")
    parser.add_argument("--trends", action="store_true", help="the slope of the gain over a series, instead")
    parser.add_argument("--teachers", action="store_true", help="several teachers, instead")
    arguments = parser.parse_args()
    started, rng = time.monotonic(), np.random.default_rng(arguments.seed)
    if arguments.looks:
        show_looks(arguments.simulations, rng, show)
    elif arguments.pairs:
        show_pairs(arguments.simulations, rng, show)
    elif arguments.trends:
        show_trends(arguments.simulations, rng, show)
    elif arguments.teachers:
        show_teachers(arguments.simulations, rng, show)
    else:
        show_single_looks(arguments.simulations, rng, show)
    show(f"\n{time.monotonic() - started:.0f} s")


def show_single_looks(simulations: int, rng: np.random.Generator, show: Callable[[str], None]) -> None:
    for name, null in NULLS.items():
        show(f"\n{name}: false gains in percent at nominal {100 * LEVEL:.0f} %, {simulations} simulations, "
             f"binomial standard error {100 * binomial_error(simulations):.2f}\n")
        show(table(false_gains(null, simulations, rng)))
    show("\ntables of three rows as good as one baseline in which any row shows a gain or a loss, percent:\n")
    show("| null | seeds | images | each interval alone at 95 % | together |\n|---|---:|---:|---:|---:|")
    for name, null in NULLS.items():
        for seeds, images in ((3, 2000), (5, 360), (5, 2000), (10, 2000)):
            found = false_families(null, simulations, rng, seeds, images)
            show(f"| {name} | {seeds} | {images:,} | {100 * found['each alone']:.1f} | {100 * found['together']:.1f} |")


def show_pairs(simulations: int, rng: np.random.Generator, show: Callable[[str], None]) -> None:
    show(f"\nintervals that hold the truth, percent, at nominal 95 %, {simulations} simulations\n")
    show("| seeds | true share, % | two baselines | … bootstrap | one baseline twice | … bootstrap |\n"
         "|---:|---:|---:|---:|---:|---:|")
    for seeds in (5, 10, 20):
        for share in (0.01, 0.05, 0.2, 0.4):
            found = pair_coverage(seeds, share, simulations, rng)
            show(f"| {seeds} | {100 * share:.0f} | " + " | ".join(f"{100 * rate:.1f}" for rate in found) + " |")


def pair_coverage(seeds: int, share: float, simulations: int, rng: np.random.Generator) -> list[float]:
    """How often `pair_share` and the bootstrap hold the true share, for runs of two baselines and then of one.

    Accuracies are normal, and the gain is such that a pair shows it with the probability `share`."""
    gain = -np.sqrt(2) * stats.norm.ppf(share)
    held = np.zeros(4)
    for _ in range(simulations):
        first, second = rng.standard_normal((2, seeds))
        for place, other in enumerate((second, first)):
            holds = other[None, :] - first[:, None] >= gain
            own = pair_share(holds)
            low, high = pairs_bootstrap(holds, rng)
            held[2 * place: 2 * place + 2] += [own.low <= share <= own.high, low <= share <= high]
    return (held / simulations).tolist()


def pairs_bootstrap(holds: np.ndarray, rng: np.random.Generator, resamples: int = 500) -> tuple[float, float]:
    """The percentile bootstrap over seeds; pairs of a seed with itself are left out."""
    seeds = len(holds)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(float)
    counted = np.where(np.eye(seeds, dtype=bool), 0.0, holds.astype(float))
    pairs = seeds**2 - (weights**2).sum(1)
    shares = ((weights @ counted) * weights).sum(1)[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(shares, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


if __name__ == "__main__":
    main()
