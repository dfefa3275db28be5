"""Confidence intervals, tests and power. Both the seeds and the test images are treated as samples.

The formulas alone, on arrays; `kdstudy.analysis.gain` applies them to a study.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

FEWEST_DISCORDANT = 6  # images on which two models differ; fewer can never show at 5 % that one is better


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval and the two-sided p-value against zero, in the unit of the data.

    A crossed interval may be wider than its standard error and degrees of freedom imply: see `crossed_interval`.
    """

    mean: float
    low: float
    high: float
    p: float
    standard_error: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class McNemar:
    """The numbers of images that only the first and only the second of two models got right, and the p-value."""

    only_first: int
    only_second: int
    p: float


def crossed_interval(differences: np.ndarray, confidence: float = 0.95, unit: float = 1.0) -> Interval:
    """Interval for the mean of paired differences (n seeds, N images), where both are random samples.

    The model has two crossed random effects without replication. With the variance s2_seed of the seeds' means,
    s2_image of the images' means, and the residual mean square s2_residual,

        Var(mean) = s2_seed / n + s2_image / N - s2_residual / (n N),

    floored at the larger of its first two terms, with Satterthwaite's degrees of freedom (Satterthwaite 1946;
    for the design see Searle, Casella and McCulloch, "Variance components", 1992, chapter 4).

    The interval is never narrower than `paired_t_interval` of the seeds' means, and its p-value is never smaller:
    sampling images as well can only add uncertainty. Nor is it narrower than `exact_interval`: where the seeds hardly
    differ and few images do, a variance of nearly zero would promise a certainty that so few images cannot give.
    With few seeds, Satterthwaite's approximation alone breaks this,
    because its degrees of freedom grow as soon as the many images contribute. With normal effects, at nominal 5 % and
    the worst ratio of the variances, it found 12 % of false gains with 2 seeds and 7.8 % with 3; with this bound it is
    5 % with 2 or 3 seeds, and at most 5.8 % with any number (4 to 6 seeds). `tests/known_nulls.py` repeats this for
    right and wrong predictions.

    unit: see `exact_interval`. Raises ValueError with fewer than two seeds or images.
    """
    crossed = _crossed(differences, confidence)
    bounds = paired_t_interval(differences.mean(1), confidence), exact_interval(differences.mean(0), confidence, unit)
    return replace(crossed, low=min(crossed.low, *(bound.low for bound in bounds)),
                   high=max(crossed.high, *(bound.high for bound in bounds)),
                   p=max(crossed.p, *(bound.p for bound in bounds)))


def accuracy_interval(right: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for an accuracy, 0 to 1, of models that got test images right, (n seeds, N images) bool.

    Seeds and images are samples, as in `crossed_interval`. Never narrower than Wilson's interval of so many images,
    which is all that there is with one seed, nor than that of the seeds' accuracies alone.
    """
    low, high = wilson_interval(right.mean(), right.shape[1], confidence)
    if min(right.shape) < 2:
        return low, high
    shares = right.astype(float)
    bounds = _crossed(shares, confidence), paired_t_interval(shares.mean(1), confidence)
    return max(0.0, min(low, *(bound.low for bound in bounds))), min(1.0, max(high, *(bound.high for bound in bounds)))


def _crossed(values: np.ndarray, confidence: float) -> Interval:
    """The interval of two crossed random effects alone, (seeds, images); see `crossed_interval`."""
    seeds, images = values.shape
    if seeds < 2 or images < 2:
        raise ValueError(f"an interval needs at least two seeds and two images, not {seeds} and {images}")
    squares = _mean_squares(values)
    terms = np.array([squares.seed / seeds, squares.image / images, -squares.residual / (seeds * images)])
    variance = max(terms.sum(), terms[0], terms[1])
    return t_interval(values.mean(), variance, float(_satterthwaite(variance, terms, seeds, images)), confidence)


def exact_interval(differences: np.ndarray, confidence: float = 0.95, unit: float = 1.0) -> Interval:
    """Exact interval for the mean of paired differences of images (N,), such as the means over seeds.

    Of two models the differences are -1, 0 and 1, in whatever unit, and this is McNemar's exact test turned into an
    interval: where n images differ, the share that favours the first model has Clopper and Pearson's interval (1934),
    and the gain is that share's excess over one half, times 2 n / N. Means over seeds lie in between. They count as
    n_eff = (sum |d|)^2 / sum d^2 images of equal size (Kish, "Survey sampling", 1965), which has the same variance.

    Fewer than FEWEST_DISCORDANT images can never reject equality, so nothing is conditioned on their number: the sums
    of positive and of negative differences, in units, have Clopper-Pearson intervals of their own among N images, each
    at half the error. Of all variables from 0 to 1 with the same mean, right or wrong has the greatest variance, so a
    sum of means over seeds is treated no better than it deserves. Without any difference the gain may then still be up
    to 4.4 / N (N images, 95 %). At 80 % and above, the interval then always holds zero, and p says so too.

    unit: the difference that one image makes to one model, 1 or, in percentage points, 100.
    """
    images, error = len(differences), 1 - confidence
    size, squares = abs(differences).sum(), (differences**2).sum()
    count = size**2 / squares if squares else 0.0  # images that differ
    positive = differences.clip(0).sum()
    wins = count * positive / size if count else 0.0
    most = max(wins, count - wins)
    p = min(1.0, 2 * float(stats.beta.cdf(0.5, most, count - most + 1))) if most else 1.0
    if count >= FEWEST_DISCORDANT - 1e-9:
        low, high = (size * (2 * share - 1) for share in _clopper_pearson(wins, count, error))
    else:
        better = _clopper_pearson(positive / unit, images, error / 2)
        worse = _clopper_pearson((size - positive) / unit, images, error / 2)
        low, high = images * unit * (better[0] - worse[1]), images * unit * (better[1] - worse[0])
        p = max(p, error) if low <= 0 <= high else p
    spread = float(np.sqrt(squares)) / images
    return Interval(float(differences.mean()), float(low / images), float(high / images), p, spread, float(count))


def _clopper_pearson(hits: float, count: float, error: float) -> tuple[float, float]:
    """Clopper and Pearson's interval for a share, at confidence 1 - error; hits and count need not be whole numbers."""
    low = stats.beta.ppf(error / 2, hits, count - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - error / 2, hits + 1, count - hits) if hits < count else 1.0
    return float(low), float(high)


def paired_t_interval(differences: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's paired t over per-seed differences (n,). It holds for these test images only.

    Raises ValueError with fewer than two seeds.
    """
    if len(differences) < 2:
        raise ValueError("an interval needs at least two seeds")
    variance = differences.var(ddof=1) / len(differences)
    return t_interval(differences.mean(), variance, len(differences) - 1, confidence)


def wilson_interval(right: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (JASA 22, 1927) for a share `right`, 0 to 1, of `count` independent predictions."""
    z = stats.norm.ppf((1 + confidence) / 2)
    middle = (right + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(right * (1 - right) / count + z**2 / (4 * count**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def pair_share(holds: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval for the share of ordered pairs of different seeds for which something holds; n seeds, (n, n) bool.

    The share is a U-statistic of degree 2 in the seeds: pairs that share a seed are not independent. Its variance is
    the jackknife's over seeds (Arvesen, Ann. Math. Stat. 40, 1969). The share then counts as one of
    n_eff = share (1 - share) / variance independent pairs, with Clopper and Pearson's interval (1934). n_eff is never
    below floor(n / 2), the number of pairs without a common seed, for a U-statistic varies no more than their mean
    (Hoeffding, J. Am. Stat. Assoc. 58, 1963, section 5), nor above the n (n - 1) / 2 pairs of seeds. A share of 0 or 1,
    whose jackknife variance is 0, counts as floor(n / 2) pairs.

    A percentile bootstrap over the seeds is too narrow for rare events, and has no width at a share of 0:
    `tests/known_nulls.py --pairs` compares the two. standard_error: the jackknife's; degrees_of_freedom: n_eff; p: 1,
    for nothing is tested. Raises ValueError with fewer than two seeds.
    """
    seeds = len(holds)
    if seeds < 2:
        raise ValueError("pairs of different seeds need at least two seeds")
    counted = np.where(np.eye(seeds, dtype=bool), 0.0, holds.astype(float))
    total, pairs, fewest = counted.sum(), seeds * (seeds - 1), seeds // 2
    share, variance = total / pairs, 0.0
    if seeds > 2:
        without = (total - counted.sum(0) - counted.sum(1)) / ((seeds - 1) * (seeds - 2))
        variance = (seeds - 1) / seeds * ((without - without.mean())**2).sum()
    if share in (0, 1) or seeds == 2:
        count = fewest
    else:
        count = min(pairs / 2, max(fewest, share * (1 - share) / variance if variance else math.inf))
    low, high = _clopper_pearson(share * count, count, 1 - confidence)
    return Interval(float(share), low, high, 1.0, math.sqrt(variance), float(count))


def holm(p_values: Sequence[float], level: float = 0.05) -> list[int]:
    """By what each p-value of k is multiplied in Holm's step-down procedure (Scand. J. Statist. 6, 1979).

    The smallest p-value by k, the next by k - 1, and so on until a product reaches the level; that one and all larger
    ones by the same number. Those whose products stay below the level are shown; that any of them is false has a
    probability of at most the level, whatever the correlation.
    """
    steps, left = [0] * len(p_values), len(p_values)
    for place in sorted(range(len(p_values)), key=lambda place: p_values[place]):
        steps[place] = left
        if left * p_values[place] >= level:
            level = 0.0  # nothing larger is shown either
        elif left > 1:
            left -= 1
    return steps


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """The exact two-sided McNemar test of which images two models got right, (N,) bool each.

    If both models are equally good, each is as likely as the other to be right on an image where they differ: a
    binomial test (McNemar 1947; the exact form is Fagerland, Lydersen and Laake, BMC Med. Res. Methodol. 13:91, 2013).
    It holds for these two trained models only: another seed may reverse it. Raises ValueError where the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"McNemar's test needs the same images twice, not {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p))


def seeds_needed(differences: np.ndarray, gain: float, power: float = 0.8, confidence: float = 0.95,
                 most: int = 1000) -> int | None:
    """The smallest number of paired seeds at which `crossed_interval` would find a true gain on this many test images.

    differences: (n seeds, N images). The variance components of seeds, images and residual are estimated from them by
        the method of moments, each floored at 0 (Searle, Casella and McCulloch 1992, chapter 4). With few seeds, the
        estimate of the seeds' component is rough.
    gain: above 0, in the unit of the differences. It is found where the whole interval lies above zero.
    power: the probability of finding it.

    With n' seeds, Var(mean) = component_seed / n' + component_image / N + component_residual / (n' N). mean / error is
    approximated by a noncentral t with noncentrality gain / sqrt(Var(mean)) (Cohen, "Statistical power analysis", 1988,
    chapter 2) and the degrees of freedom that Satterthwaite's formula gives for the expected mean squares. The paired t
    that bounds the interval has n' - 1 degrees of freedom and a scale that counts the seeds alone. The power is the
    smaller of the two.

    None where no number up to `most` is enough: then the images alone leave too much open.
    Raises ValueError with fewer than two seeds or images, or a gain that is not above 0.
    """
    if gain <= 0:
        raise ValueError(f"the gain to be found must be above 0, not {gain}")
    numbers = np.arange(2, most + 1)
    enough = _power(gain, _components(differences), numbers, differences.shape[1], confidence) >= power
    return int(numbers[enough.argmax()]) if enough.any() else None


def smallest_gain(differences: np.ndarray, seeds: int | None = None, power: float = 0.8,
                  confidence: float = 0.95, most: float = math.inf) -> float | None:
    """The smallest true gain that `seeds` paired seeds would find, in the unit of the differences (n seeds, N images).

    The inverse of `seeds_needed`; seeds = None takes the number of seeds in `differences`. None above `most`.
    Raises ValueError with fewer than two seeds or images.
    """
    components, images = _components(differences), differences.shape[1]
    count = np.array([seeds or len(differences)])
    if count < 2:
        raise ValueError("an interval needs at least two seeds")
    error = float(np.sqrt(_expected(components, count, images).sum()))
    if error == 0:
        return 0.0

    def missing(gain: float) -> float:
        return float(_power(gain, components, count, images, confidence)[0] - power)

    high = error
    while not missing(high) >= 0:  # at extreme confidences it may be NaN
        if high > most:
            return None
        high *= 2
    found = float(optimize.brentq(missing, 0.0, high, rtol=1e-6))
    return found if found <= most else None


@dataclass(frozen=True)
class _MeanSquares:
    """Variances of the seeds' means and of the images' means, and the residual mean square."""

    seed: float
    image: float
    residual: float


def _mean_squares(differences: np.ndarray) -> _MeanSquares:
    seeds, images = differences.shape
    seed_means, image_means = differences.mean(1), differences.mean(0)
    residual = differences - seed_means[:, None] - image_means[None, :] + differences.mean()
    return _MeanSquares(seed_means.var(ddof=1), image_means.var(ddof=1),
                        (residual**2).sum() / ((seeds - 1) * (images - 1)))


def _components(differences: np.ndarray) -> np.ndarray:
    """Variance components of seeds, images and residual by the method of moments, none below 0."""
    seeds, images = differences.shape
    if seeds < 2 or images < 2:
        raise ValueError(f"variance components need at least two seeds and two images, not {seeds} and {images}")
    squares = _mean_squares(differences)
    return np.maximum(0, [squares.seed - squares.residual / images, squares.image - squares.residual / seeds,
                          squares.residual])


def _expected(components: np.ndarray, seeds: np.ndarray, images: int) -> np.ndarray:
    """Expected values of the three terms of Var(mean) in `crossed_interval` per number of seeds, (3, len(seeds))."""
    residual = components[2] / (seeds * images)
    return np.array([components[0] / seeds + residual, components[1] / images + residual, -residual])


def _satterthwaite(variance: np.ndarray, terms: np.ndarray, seeds: np.ndarray, images: int) -> np.ndarray:
    """Degrees of freedom of a variance that is a sum of terms (3, …): of the seeds, the images and the residual."""
    spread = (terms[0]**2 / (seeds - 1) + terms[1]**2 / (images - 1) + terms[2]**2 / ((seeds - 1) * (images - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, variance**2 / spread, np.inf)


def _power(gain: float, components: np.ndarray, seeds: np.ndarray, images: int, confidence: float) -> np.ndarray:
    """The probability that the crossed interval lies above zero, per number of seeds: see `seeds_needed`."""
    terms = _expected(components, seeds, images)
    variance = terms.sum(0)
    if not variance.all():
        return np.ones(len(seeds))  # nothing varies, so any gain is found
    shift, quantile = gain / np.sqrt(variance), (1 + confidence) / 2
    freedom = _satterthwaite(variance, terms, seeds, images)
    crossed = stats.nct.sf(stats.t.ppf(quantile, freedom), freedom, shift)
    scale = np.sqrt(terms[0] / variance)  # the paired t counts the seeds' part as the whole error
    seeds_only = stats.nct.sf(stats.t.ppf(quantile, seeds - 1) * scale, seeds - 1, shift)
    return np.minimum(crossed, seeds_only)


def t_interval(mean: float, variance: float, freedom: float, confidence: float) -> Interval:
    """Student's interval for a mean with this estimated variance and its degrees of freedom."""
    error = float(np.sqrt(variance))
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error
    if error > 0:
        p = 2 * stats.t.sf(abs(mean) / error, freedom)
    else:
        p = 1.0 if mean == 0 else 0.0
    return Interval(float(mean), float(mean - half), float(mean + half), float(p), error, float(freedom))
