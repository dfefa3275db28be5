"""How several looks at accumulating data share one level of significance: formulas alone, on arrays.

A look is a test at some share of the information that was planned, 0 to 1; for paired seeds, their number over the
largest planned. The looks' test statistics are taken as jointly normal, the correlation of two being the root of the
ratio of their information, whatever the variances. Where the looks share test images too, they correlate more, and the
level can only fall. With the few degrees of freedom of 3 seeds they correlate less: `tests/known_nulls.py --looks`
simulates what that costs.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

POWER = 1.5  # of the spending function: see `spent`
NODES = np.polynomial.legendre.leggauss(128)
FURTHEST = 40.0  # standard deviations; no level above 0 is as small as what lies beyond


def spent(information: Sequence[float], total: float) -> np.ndarray:
    """The share of a two-sided level that is spent up to each look, (looks,): total x information^1.5.

    The power family of Kim and DeMets (Biometrika 74:149, 1987). An O'Brien-Fleming-type function, 2 - 2 Phi(z/sqrt(t))
    for each side (Lan and DeMets, Biometrika 70:659, 1983), leaves the first look of 3, 5 and 10 seeds 0.008 %. Normal
    statistics can pass that, but a t with 2 degrees of freedom would have to reach 112, so no study would ever stop at
    3 seeds. The power 1.5 leaves that look 0.8 % and the last 3.9 %.
    """
    return total * np.asarray(information, dtype=float)**POWER


def nominal_levels(information: Sequence[float], spending: Sequence[float]) -> np.ndarray:
    """The two-sided level at which each look tests, (looks,), so that all of them together spend `spending`.

    information: of each look, increasing, above 0. spending: the probability, without an effect, that this look or an
        earlier one rejects; increasing.

    The recursive integration of Armitage, McPherson and Rowe (J. R. Stat. Soc. A 132:235, 1969), here by Gauss and
    Legendre's rule, of the sums S = Z sqrt(information) that no earlier look has rejected.
    Raises ValueError unless both increase from above 0.
    """
    information, spending = np.asarray(information, dtype=float), np.asarray(spending, dtype=float)
    steps, shares = np.diff(information, prepend=0.0), np.diff(spending, prepend=0.0)
    if len(steps) != len(shares) or not (steps > 0).all() or not (shares > 0).all():
        raise ValueError(f"information {information} and spending {spending} must both increase from above 0")
    sums, masses, levels = np.zeros(1), np.ones(1), []
    for at, step, share in zip(information, np.sqrt(steps), shares, strict=True):
        bound = optimize.brentq(_excess, 0.0, FURTHEST * np.sqrt(at), args=(sums, masses, step, share), xtol=1e-12)
        levels.append(2 * stats.norm.sf(bound / np.sqrt(at)))
        after = bound * NODES[0]
        masses = bound * NODES[1] * (stats.norm.pdf(after[:, None], sums, step) @ masses)
        sums = after
    return np.array(levels)


def _excess(bound: float, sums: np.ndarray, masses: np.ndarray, step: float, share: float) -> float:
    """By how much the next look's probability of leaving -bound to bound exceeds its share."""
    outside = stats.norm.sf(bound, sums, step) + stats.norm.cdf(-bound, sums, step)
    return float(outside @ masses) - share
