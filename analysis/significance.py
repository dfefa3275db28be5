"""Is the gain real? Intervals that treat seeds AND test images as samples."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval and the two-sided p-value against zero, in the unit of the data."""

    mean: float
    low: float
    high: float
    p: float
    standard_error: float
    degrees_of_freedom: float


def crossed_interval(differences: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval for the mean of paired differences (n seeds, N images), both of them drawn at random.

    Two crossed random effects without replication. With the variance of the seeds' means s2_seed, of the images' means
    s2_image, and the residual mean square s2_residual,

        Var(mean) = s2_seed / n + s2_image / N - s2_residual / (n N),

    floored at the larger of its first two terms, with Satterthwaite's degrees of freedom (Satterthwaite 1946;
    for the design see Searle, Casella and McCulloch, "Variance components", 1992, chapter 4).
    Raises ValueError with fewer than two seeds or images.
    """
    seeds, images = differences.shape
    if seeds < 2 or images < 2:
        raise ValueError(f"an interval needs at least two seeds and two images, not {seeds} and {images}")
    mean = differences.mean()
    seed_means, image_means = differences.mean(1), differences.mean(0)
    residual = differences - seed_means[:, None] - image_means[None, :] + mean
    terms = np.array([
        seed_means.var(ddof=1) / seeds,
        image_means.var(ddof=1) / images,
        -(residual**2).sum() / ((seeds - 1) * (images - 1)) / (seeds * images),
    ])
    freedoms = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    variance = max(terms.sum(), terms[0], terms[1])
    spread = (terms**2 / freedoms).sum()
    return _t_interval(mean, variance, variance**2 / spread if spread > 0 else np.inf, confidence)


def paired_t_interval(differences: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's paired t over per-seed differences (n,): speaks of these very test images only.

    Raises ValueError with fewer than two seeds.
    """
    if len(differences) < 2:
        raise ValueError("an interval needs at least two seeds")
    variance = differences.var(ddof=1) / len(differences)
    return _t_interval(differences.mean(), variance, len(differences) - 1, confidence)


def wilson_interval(right: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a share of `count` independent answers, 0 to 1: Wilson's score interval (JASA 22, 1927)."""
    z = stats.norm.ppf((1 + confidence) / 2)
    middle = (right + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(right * (1 - right) / count + z**2 / (4 * count**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def _t_interval(mean: float, variance: float, freedom: float, confidence: float) -> Interval:
    error = float(np.sqrt(variance))
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error
    if error > 0:
        p = 2 * stats.t.sf(abs(mean) / error, freedom)
    else:
        p = 1.0 if mean == 0 else 0.0
    return Interval(float(mean), float(mean - half), float(mean + half), float(p), error, float(freedom))
