"""The interval of a gain where teachers, seeds and test images are all samples. The formulas alone, on arrays."""

from dataclasses import replace
from itertools import combinations

import numpy as np

from kdstudy.analysis.significance import Interval, crossed_interval, t_interval


def three_way_interval(differences: np.ndarray, confidence: float = 0.95, unit: float = 1.0) -> Interval:
    """Interval for the mean of paired differences (t teachers, n seeds, N images), all three random samples.

    The model has three crossed random effects without replication, with all interactions. Write M(A) for the mean
    square of an effect A in the means over all that A leaves out (`_terms`), and |A| for the number of such
    means. Then

        Var(mean) = sum over all A of (-1)^(order of A - 1) M(A) / |A|,

    which is unbiased: the main effects enter with plus, the interactions of two with minus, that of three with plus.
    That is the variance of a multi-reader multi-case study's figure of merit by the method of moments, with teachers as
    readers and images as cases (Gallas, Acad. Radiol. 13:353, 2006; Obuchowski and Rockette, Commun. Stat. Simul. 24,
    1995), here with seeds besides. It is floored at the largest of the main effects' terms, with Satterthwaite's
    degrees of freedom (Biometrics Bulletin 2, 1946).

    As in `crossed_interval`, and for the same reason, the interval is never narrower than one that treats less as
    samples: `crossed_interval` of teachers and images, from the means over seeds, and of seeds and images, from the
    means over teachers, which holds for these teachers alone. Its p-value is never smaller than theirs. The first is
    itself never narrower than Student's t over the teachers' means. With two teachers that has one degree of freedom:
    the interval is honest, and wide. `tests/known_nulls.py --teachers` simulates it.

    unit: see `exact_interval`. Raises ValueError with fewer than two teachers, seeds or images.
    """
    if min(differences.shape) < 2:
        teachers, seeds, images = differences.shape
        raise ValueError("an interval needs at least two teachers, seeds and images, not "
                         f"{teachers}, {seeds} and {images}")
    terms, freedoms = _terms(differences)
    variance = max(terms.sum(), terms[:3].max())
    spread = (terms**2 / freedoms).sum()
    freedom = float(variance**2 / spread) if spread > 0 else np.inf
    whole = t_interval(differences.mean(), variance, freedom, confidence)
    bounds = [crossed_interval(differences.mean(left_out), confidence, unit) for left_out in (0, 1)]
    return replace(whole, low=min(whole.low, *(bound.low for bound in bounds)),
                   high=max(whole.high, *(bound.high for bound in bounds)),
                   p=max(whole.p, *(bound.p for bound in bounds)))


def _terms(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The terms of Var(mean) and their degrees of freedom, (7,) each: the three main effects first."""
    terms, freedoms, shape = [], [], differences.shape
    for order in (1, 2, 3):
        for axes in combinations(range(3), order):
            sizes = np.array([shape[axis] for axis in axes])
            freedom = int((sizes - 1).prod())
            sign = 1 if order != 2 else -1
            terms.append(sign * _sum_of_squares(differences, axes) / freedom / sizes.prod())
            freedoms.append(freedom)
    return np.array(terms), np.array(freedoms, dtype=float)


def _sum_of_squares(differences: np.ndarray, axes: tuple[int, ...]) -> float:
    """Of one effect: the means over all other axes, less all effects that it contains, squared and summed."""
    means = differences.mean(tuple(axis for axis in range(3) if axis not in axes), keepdims=True)
    for axis in axes:
        means = means - means.mean(axis, keepdims=True)
    return float((means**2).sum())
