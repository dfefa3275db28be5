"""The gain over the tuned baseline, in percentage points, with its 95 % interval."""

from typing import Any

import numpy as np

from kdstudy.analysis.significance import Interval, crossed_interval, paired_t_interval
from kdstudy.analysis.three_way import three_way_interval

SIGNIFICANT = 0.05  # two-sided p-values below this count as shown


def gain(right: np.ndarray, baseline: np.ndarray, comparisons: int = 1,
         level: float = SIGNIFICANT) -> dict[str, Any] | None:
    """The gain of `right` over `baseline`, which test images each got right, (seeds, N) bool; None with one seed.

    The same seed of both is a pair. In percentage points: mean, low, high; also p (two-sided, against zero), seeds,
    images, comparisons, and seeds_only, the interval over seeds alone, for these very images.

    comparisons: the number of comparisons that are to be right together with 95 %. Each interval then has a confidence
        of 1 - 5 % / comparisons, and p is multiplied by it (Bonferroni; Dunn, JASA 56, 1961), whatever the correlation
        of gains that share one baseline.
    level: at which this look at the test images tests; 5 % where it is the only one (`kdstudy.analysis.looks`). A
        smaller one widens the intervals further and multiplies p by 5 % / level, so that p is below 5 % exactly where
        the interval leaves out zero.
    """
    differences = 100 * (right.astype(float) - baseline.astype(float))
    seeds, images = differences.shape
    if seeds < 2:
        return None
    confidence = 1 - level / comparisons
    found = _as_dict(crossed_interval(differences, confidence, unit=100.0))
    return {**found, "p": _adjusted(found, comparisons, level), "seeds": seeds, "images": images,
            "comparisons": comparisons, "seeds_only": _as_dict(paired_t_interval(differences.mean(1), confidence))}


def gain_over_teachers(right: np.ndarray, baseline: np.ndarray, level: float = SIGNIFICANT) -> dict[str, Any] | None:
    """The gain of students of several teachers, right on (teachers, seeds, N) bool, over the baseline, (seeds, N) bool;
    None with one seed.

    As `gain`, with teachers, their number; seeds_only is over seeds alone, for these very teachers and images, and
    these_teachers, the interval over seeds and images, holds for these very teachers."""
    differences = 100 * (right.astype(float) - baseline.astype(float))
    teachers, seeds, images = differences.shape
    if seeds < 2:
        return None
    found = _as_dict(three_way_interval(differences, 1 - level, unit=100.0))
    return {**found, "p": _adjusted(found, 1, level), "teachers": teachers, "seeds": seeds, "images": images,
            "comparisons": 1, "seeds_only": _as_dict(paired_t_interval(differences.mean((0, 2)), 1 - level)),
            "these_teachers": _as_dict(crossed_interval(differences.mean(0), 1 - level, unit=100.0))}


def _adjusted(interval: dict[str, float], comparisons: int, level: float) -> float:
    """The p-value of one of several comparisons at a level, below 5 % exactly where the interval leaves out zero."""
    p = min(1.0, comparisons * (SIGNIFICANT / level) * interval["p"])
    return max(p, SIGNIFICANT) if interval["low"] <= 0 <= interval["high"] else p  # not below by rounding


def gap_to_teacher(teacher: np.ndarray | None, baseline: np.ndarray) -> Interval | None:
    """The lead of the teacher, right on (N,) bool, over the baseline, (seeds, N) bool, as a share, 0 to 1.

    None where the teacher has no predictions, and with one seed.
    """
    if teacher is None or len(baseline) < 2:
        return None
    return crossed_interval(teacher[None, :] - baseline.astype(float))


def over_seeds(right: np.ndarray) -> dict[str, Any]:
    """seeds, test_mean and test_sd of a row: the accuracy in percent, its mean and standard deviation over the seeds
    (None with one seed). right: (seeds, N) bool, which test images each run got right."""
    return {"seeds": len(right), "test_mean": 100 * float(right.mean()),
            "test_sd": 100 * float(right.mean(1).std(ddof=1)) if len(right) > 1 else None}


def gap_closed(own_gain: dict[str, Any] | None, gap: Interval | None) -> float | None:
    """The gain as a share of the teacher's lead over the baseline; None unless that lead is significant."""
    if own_gain is None or gap is None or gap.low <= 0:
        return None
    return own_gain["mean"] / (100 * gap.mean)


def _as_dict(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "p": interval.p}
