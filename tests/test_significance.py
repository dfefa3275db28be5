"""Intervals against independent computations, and their error rate under a null over seeds AND images."""

import numpy as np
import pytest
from scipy import stats

from analysis.significance import crossed_interval, paired_t_interval, wilson_interval


def test_the_crossed_variance_is_the_stated_sum():
    rng = np.random.default_rng(0)
    differences = rng.normal(1, 1, (5, 1)) + rng.normal(0, 2, (1, 40)) + rng.normal(0, 1, (5, 40))
    n, images = differences.shape
    seed = np.var(differences.mean(1), ddof=1) / n
    image = np.var(differences.mean(0), ddof=1) / images
    residual = 0.0
    for i in range(n):
        for j in range(images):
            residual += (differences[i, j] - differences[i].mean() - differences[:, j].mean() + differences.mean()) ** 2
    noise = residual / ((n - 1) * (images - 1)) / (n * images)
    variance = seed + image - noise
    freedom = variance**2 / (seed**2 / (n - 1) + image**2 / (images - 1) + noise**2 / ((n - 1) * (images - 1)))
    result = crossed_interval(differences)
    assert variance > max(seed, image)
    assert result.standard_error**2 == pytest.approx(variance)
    assert result.degrees_of_freedom == pytest.approx(freedom)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (result.low, result.high) == pytest.approx((differences.mean() - half, differences.mean() + half))


def test_the_variance_is_never_smaller_than_its_larger_part():
    """Pure residual noise: both parts contain it, so their sum less the residual would be about one of them."""
    for seed in range(20):
        differences = np.random.default_rng(seed).normal(0, 1, (3, 30))
        result = crossed_interval(differences)
        parts = np.var(differences.mean(1), ddof=1) / 3, np.var(differences.mean(0), ddof=1) / 30
        assert result.standard_error**2 >= max(parts) * (1 - 1e-12)


def test_the_paired_interval_is_students_t():
    differences = np.array([1.2, 0.4, 2.0, -0.3, 0.9])
    result = paired_t_interval(differences)
    reference = stats.ttest_1samp(differences, 0.0)
    low, high = reference.confidence_interval(0.95)
    assert (result.p, result.low, result.high) == pytest.approx((reference.pvalue, low, high))


def test_one_seed_gives_no_interval():
    with pytest.raises(ValueError, match="at least two seeds"):
        crossed_interval(np.zeros((1, 10)))
    with pytest.raises(ValueError, match="at least two seeds"):
        paired_t_interval(np.zeros(1))


def test_no_difference_at_all_is_no_evidence():
    result = crossed_interval(np.zeros((5, 100)))
    assert (result.mean, result.low, result.high, result.p) == (0, 0, 0, 1)


def null_rejections(seeds, images, runs, rng):
    """How often each test finds a gain where seeds and images are drawn anew and there is none."""
    crossed = paired = 0
    for _ in range(runs):
        difficulty = rng.normal(0, 1.0, (1, images))
        correct = []
        for _arm in range(2):
            lean = rng.normal(0, 0.35, (1, images))  # what this arm happens to find easy
            skill = rng.normal(1.5, 0.05, (seeds, 1))
            correct.append(rng.normal(0, 0.7, (seeds, images)) < skill + difficulty + lean)
        differences = correct[0].astype(float) - correct[1]
        crossed += crossed_interval(differences).p < 0.05
        paired += paired_t_interval(differences.mean(1)).p < 0.05
    return crossed / runs, paired / runs


def test_under_a_null_over_seeds_and_images_the_crossed_interval_keeps_its_level():
    """At 5 seeds and 360 images; three standard errors of 600 simulations are 2.7 points."""
    crossed, paired = null_rejections(5, 360, 600, np.random.default_rng(0))
    assert crossed < 0.05 + 0.027
    assert paired > crossed  # the seeds-only interval is too sure of itself here


@pytest.mark.parametrize(("right", "count"), [(0.0, 20), (0.3, 24), (0.95, 360), (1.0, 10)])
def test_wilsons_bounds_are_where_the_score_test_turns(right, count):
    """At a bound p, the observed share lies exactly z standard errors of p away."""
    for bound in wilson_interval(right, count):
        if 1e-9 < bound < 1 - 1e-9:  # at 0 and 1 the bound is the share itself
            z = abs(right - bound) / np.sqrt(bound * (1 - bound) / count)
            assert z == pytest.approx(stats.norm.ppf(0.975))
    low, high = wilson_interval(right, count)
    assert 0 <= low <= right + 1e-12 and right - 1e-12 <= high <= 1 and low < high
