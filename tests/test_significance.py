"""Intervals and tests against independent computations, and their error rates over new seeds AND images."""

import math

import numpy as np
import pytest
from known_nulls import (
    IMAGES,
    LEVEL,
    NULLS,
    SEEDS,
    binomial_error,
    false_families,
    false_gains,
    false_looks,
    found_by,
    satterthwaite_alone,
)
from scipy import stats

from kdstudy.analysis.looks import Compared, levels
from kdstudy.analysis.significance import (
    crossed_interval,
    exact_interval,
    mcnemar,
    paired_t_interval,
    seeds_needed,
    smallest_gain,
    wilson_interval,
)
from kdstudy.analysis.spending import nominal_levels


def random_effects(rng, shape, components, gain=0.0):
    """Normal differences (seeds, images) with variance components of seeds, images and residual."""
    seeds, images = shape
    seed, image, residual = np.sqrt(components)
    return (gain + seed * rng.normal(size=(seeds, 1)) + image * rng.normal(size=(1, images))
            + residual * rng.normal(size=shape))


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


def test_the_crossed_interval_is_never_narrower_than_that_of_the_seeds_alone():
    """Where Satterthwaite's degrees of freedom would make it so, it is Student's t over the seeds' means."""
    rng, bounded = np.random.default_rng(0), 0
    for _ in range(50):
        differences = random_effects(rng, (3, 200), (0.5, 10.0, 30.0), gain=1.0)
        result, over_seeds = crossed_interval(differences), stats.ttest_1samp(differences.mean(1), 0.0)
        half = stats.t.ppf(0.975, result.degrees_of_freedom) * result.standard_error
        low, high = over_seeds.confidence_interval(0.95)
        bounded += high - low > 2 * half
        expected = (low, high) if high - low > 2 * half else (result.mean - half, result.mean + half)
        # The exact interval over images may be a little wider still.
        assert (result.low, result.high) == pytest.approx(expected, abs=0.05 * half)
        assert result.low <= expected[0] + 1e-9 and result.high >= expected[1] - 1e-9
        assert result.p >= max(satterthwaite_alone(result), over_seeds.pvalue) - 1e-12
        assert (result.p < 0.05) == (result.low > 0 or result.high < 0)
    assert 5 < bounded < 45


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


def test_no_difference_at_all_is_no_evidence_and_no_certainty():
    """If the second model alone were right on more than 4.3 % of all images, 100 would show none with 1.25 %."""
    result = crossed_interval(np.zeros((5, 100)), unit=100.0)
    assert (result.mean, result.p) == (0, 1)
    most = 100 * (1 - 0.0125 ** (1 / 100))
    assert (result.low, result.high) == pytest.approx((-most, most)) and 4.2 < most < 4.4


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (6, 0), (0, 9), (12, 3), (60, 40)])
def test_seeds_that_agree_are_as_uncertain_as_mcnemars_test(wins, losses):
    """All seeds say the same of every image: more of them are no more evidence than one."""
    differences = 100.0 * np.repeat([1, -1, 0], [wins, losses, 400 - wins - losses])
    result = crossed_interval(np.tile(differences, (5, 1)), unit=100.0)
    first, second = differences > 0, differences < 0
    assert result.p >= mcnemar(first, second).p - 1e-12
    assert (result.low > 0 or result.high < 0) == (result.p < 0.05) == (mcnemar(first, second).p < 0.05)


@pytest.mark.parametrize(("better", "worse", "images"), [(0.0, 0.0, 50), (0.004, 0.004, 300), (0.02, 0.01, 300),
                                                         (0.1, 0.06, 300)])
def test_the_exact_interval_holds_the_true_gain_as_often_as_it_says(better, worse, images):
    """Only one model, or only the other, is right on a share of all images; few differ, or none."""
    rng, held = np.random.default_rng(0), 0
    for wins, losses, _ in rng.multinomial(images, [better, worse, 1 - better - worse], size=2000):
        differences = np.repeat([1.0, -1.0, 0.0], [wins, losses, images - wins - losses])
        result = crossed_interval(np.tile(differences, (3, 1)))
        held += result.low <= better - worse <= result.high
    assert held / 2000 > 0.95 - 3 * binomial_error(2000)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.01, 0.05])
def test_the_exact_interval_holds_where_only_some_seeds_differ(share):
    """One seed of five is better on a share of the images, and the others are identical."""
    rng, images, held = np.random.default_rng(0), 300, 0
    for wins in rng.binomial(images, share, size=2000):
        differences = np.repeat([0.2, 0.0], [wins, images - wins])
        result = exact_interval(differences)
        held += result.low <= 0.2 * share <= result.high
        assert (result.p < 0.05) == (result.low > 0)
    if share <= 0.01:  # with more images, the seeds' own variance is what makes the interval wide
        assert held / 2000 > 0.95 - 3 * binomial_error(2000)
    one = exact_interval(np.repeat([0.2, 0.0], [1, images - 1]))
    none = exact_interval(np.zeros(images))
    assert one.high > none.high and one.low == pytest.approx(none.low)


def test_a_fractional_number_of_differing_images_gives_no_p_value_that_contradicts_the_interval():
    """Five images fully and one in part: n_eff between 5 and 6, where the binomial test alone says p < 5 %."""
    differences = np.repeat([1.0, 0.4, 0.0], [5, 1, 294])
    result = exact_interval(differences)
    assert 5.3 < result.degrees_of_freedom < 6
    assert result.low < 0 < result.high and result.p >= 0.05


def test_under_nulls_over_seeds_and_images_the_crossed_interval_keeps_its_level():
    """For every number of seeds and images, within three standard errors; the seeds alone are too sure of theirs."""
    simulations = 400
    rates = false_gains(NULLS["seeds and images"], simulations, np.random.default_rng(0))
    assert list(rates.index) == [(seeds, images) for seeds in SEEDS for images in IMAGES]
    assert rates["crossed"].max() < LEVEL + 3 * binomial_error(simulations)
    assert rates["crossed"].mean() > LEVEL / 3  # and it does find something now and then
    assert rates.loc[(10, 360), "paired t over seeds"] > LEVEL + 4 * binomial_error(simulations)


@pytest.mark.parametrize("null", NULLS)
def test_the_other_rows_of_a_table_are_right_together(null):
    """Three rows that are as good as the baseline: together they show something in 5 % of all tables, not in 10 to 15.
    """
    simulations = 300
    found = false_families(NULLS[null], simulations, np.random.default_rng(0), seeds=5, images=360)
    assert found["each alone"] > found["together"]
    assert found["together"] < LEVEL + 2 * binomial_error(simulations)


# Lan and DeMets (Biometrika 70:659, 1983): equally spaced looks, two-sided 5 %, as tables and software give them.
OBRIEN_FLEMING_TYPE = [(2.963, 1.969), (3.710, 2.511, 1.993), (4.877, 3.357, 2.680, 2.290, 2.031)]


@pytest.mark.parametrize("bounds", OBRIEN_FLEMING_TYPE)
def test_looks_spend_their_level_at_the_published_bounds(bounds):
    information = np.arange(1, len(bounds) + 1) / len(bounds)
    spending = 4 * stats.norm.sf(stats.norm.isf(0.05 / 4) / np.sqrt(information))
    levels = nominal_levels(information, spending)
    assert stats.norm.isf(levels / 2) == pytest.approx(bounds, abs=6e-4)
    if len(bounds) == 2:
        assert levels == pytest.approx([0.0031, 0.049], abs=5e-5)


def test_pococks_looks_all_have_the_same_level():
    """Pocock (Biometrika 64:191, 1977): five looks at 1.58 % each spend 5 %; two at 2.94 %."""
    for looks, level in ((2, 0.0294), (5, 0.0158)):
        information, rng = np.arange(1, looks + 1) / looks, np.random.default_rng(0)
        sums = rng.standard_normal((400_000, looks)).cumsum(1) / np.sqrt(np.arange(1, looks + 1))
        crossed = np.maximum.accumulate(2 * stats.norm.sf(abs(sums)) < level, axis=1).mean(0)
        assert nominal_levels(information, crossed) == pytest.approx([level] * looks, rel=0.03)
        assert crossed[-1] == pytest.approx(0.05, abs=0.001)


def test_a_single_look_has_the_whole_level_and_wrong_plans_are_refused():
    assert nominal_levels([1.0], [0.05]) == pytest.approx([0.05])
    for information, spending in (([0.5, 0.5], [0.01, 0.05]), ([0.5, 1.0], [0.05, 0.05]), ([0.0, 1.0], [0.01, 0.05]),
                                  ([1.0], [0.01, 0.05])):
        with pytest.raises(ValueError, match="must both increase from above 0"):
            nominal_levels(information, spending)


def test_planned_looks_share_five_percent_and_all_others_half_a_percent():
    first, other = ({"lr": 1e-3}, {"alpha": 0.1}), ({"lr": 1e-3}, {"alpha": 0.9})
    three, five, ten = (Compared(seeds, *first) for seeds in (3, 5, 10))
    planned = [level for level, is_planned in levels((3, 5, 10), [three, five, ten]) if is_planned]
    assert len(planned) == 3 and planned == sorted(planned) and 0.035 < planned[-1] < 0.05 < sum(planned)
    assert levels((3,), [three, five, ten]) == [(0.05, True), (0.0025, False), (0.00125, False)]
    assert levels((10,), [ten]) == [(0.05, True)] and levels((3, 10), [ten]) == [(0.05, True)]
    mixed = levels((3, 5, 10), [three, Compared(3, *other), five, ten, Compared(10, *other)])
    assert [is_planned for _, is_planned in mixed] == [True, False, True, True, False]
    assert [level for level, is_planned in mixed if is_planned] == planned
    assert levels((3, 5), [five, three])[1] == (0.0025, False)  # fewer seeds again
    often = [Compared(3, {"lr": 1e-3 * number}, {}) for number in range(1, 101)]
    assert sum(level for level, _ in levels((3,), often)) == pytest.approx(0.055) and levels((3,), often)[-1][0] > 0


@pytest.mark.parametrize("null", NULLS)
def test_however_often_a_study_looks_it_keeps_its_level(null):
    """At 5 % each, looks at 3, 5 and 10 seeds or at three winners find a gain or a loss in 10 % of the studies."""
    simulations = 300
    found = false_looks(NULLS[null], simulations, np.random.default_rng(0), images=1000)
    limit = 0.055 + 2 * binomial_error(simulations)
    assert max(found["planned"], found["not planned"], found["three winners"]) < limit
    assert found["3, 5, 10 seeds, each at 5 %"] > found["planned"]
    assert found["three winners, each at 5 %"] > found["three winners"]


def test_planned_looks_find_a_gain_nearly_as_often_as_all_seeds_and_with_fewer_of_them():
    found = found_by(NULLS["seeds and images"], 3.0, 100, np.random.default_rng(0), images=1000)
    assert found["fixed 10"][0] - found["planned"][0] < 0.05 and found["planned"][1] < 7.5
    assert found["planned"][1] < found["O'Brien-Fleming"][1] < 10
    none = found_by(NULLS["seeds and images"], 0.0, 100, np.random.default_rng(0), images=1000)
    assert none["planned, confirm.gain = 2"][1] < none["planned"][1]


def test_with_three_seeds_the_bound_is_what_keeps_the_level():
    """Ratios of the variances at which Satterthwaite's approximation is at its worst."""
    rng, simulations, images = np.random.default_rng(0), 3000, 30
    found = [crossed_interval(random_effects(rng, (3, images), (30 / images, 3 / 3, 1.0))) for _ in range(simulations)]
    assert np.mean([satterthwaite_alone(result) < 0.05 for result in found]) > LEVEL + 3 * binomial_error(simulations)
    assert np.mean([result.p < 0.05 for result in found]) < LEVEL + 3 * binomial_error(simulations)


@pytest.mark.parametrize(("only_first", "only_second"), [(12, 3), (3, 12), (7, 7), (9, 8), (1, 0)])
def test_mcnemars_test_counts_the_coin_flips_at_least_as_uneven(only_first, only_second):
    first = np.repeat([True, False, True, False], [only_first, only_second, 20, 5])
    second = np.repeat([False, True, True, False], [only_first, only_second, 20, 5])
    flips, most = only_first + only_second, max(only_first, only_second)
    tail = sum(math.comb(flips, heads) for heads in range(most, flips + 1)) / 2**flips
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p == pytest.approx(min(1.0, 2 * tail))


def test_mcnemars_test_sees_nothing_in_equal_answers_and_refuses_other_images():
    same = np.array([True, False, True])
    assert mcnemar(same, same).p == 1
    with pytest.raises(ValueError, match="the same images"):
        mcnemar(same, np.array([True, False]))


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.8, 15), (0.5, 34)])
def test_where_images_do_not_matter_the_seeds_needed_are_those_of_the_paired_t(effect, seeds):
    """Power 0.8 at two-sided 5 %, in standard deviations of a pair: as the tables (Cohen 1988) have it."""
    of_seeds = np.array([-1.0, 0.0, 1.0])  # standard deviation 1
    assert seeds_needed(np.repeat(of_seeds[:, None], 50, 1), effect) == seeds


def test_no_number_of_seeds_finds_what_the_images_leave_open():
    """Without any seed effect a gain must be 1.96 + 0.84 standard errors of the images' mean, however many seeds."""
    of_images = np.random.default_rng(0).normal(0, 1, 5000)
    error = of_images.std(ddof=1) / np.sqrt(5000)
    assert seeds_needed(np.tile(of_images, (4, 1)), 2.79 * error) is None
    assert seeds_needed(np.tile(of_images, (4, 1)), 2.82 * error) == 2
    assert smallest_gain(np.tile(of_images, (4, 1))) == pytest.approx(2.8016 * error, rel=1e-3)


@pytest.mark.parametrize(("seeds", "components"), [(3, (0.3, 3.0, 100.0)), (5, (1.0, 3.0, 100.0)),
                                                   (8, (0.0, 40.0, 100.0))])
def test_the_smallest_gain_is_found_as_often_as_promised(seeds, components):
    """The approximation may be 3 points off; three standard errors of 800 simulations are 4 points."""
    rng = np.random.default_rng(0)
    gain = smallest_gain(random_effects(rng, (400, 400), components), seeds)
    found = [crossed_interval(random_effects(rng, (seeds, 400), components, gain)).low > 0 for _ in range(800)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_seeds_needed_and_smallest_gain_are_each_others_inverse():
    differences = random_effects(np.random.default_rng(1), (5, 500), (1.0, 10.0, 100.0))
    for seeds in (3, 6, 20):
        gain = smallest_gain(differences, seeds)
        assert seeds_needed(differences, 1.001 * gain) == seeds
        assert seeds_needed(differences, 0.999 * gain) == seeds + 1
    assert smallest_gain(differences) == smallest_gain(differences, 5)
    assert seeds_needed(differences, smallest_gain(differences, 20), most=10) is None


def test_differences_that_never_vary_need_no_more_than_two_seeds():
    assert seeds_needed(np.ones((3, 10)), 0.1) == 2
    assert smallest_gain(np.ones((3, 10))) == 0


def test_power_needs_two_seeds_and_a_gain():
    with pytest.raises(ValueError, match="at least two seeds"):
        seeds_needed(np.zeros((1, 10)), 1.0)
    with pytest.raises(ValueError, match="at least two seeds"):
        smallest_gain(np.eye(3), 1)
    with pytest.raises(ValueError, match="above 0"):
        seeds_needed(np.eye(3), 0.0)


@pytest.mark.parametrize(("right", "count"), [(0.0, 20), (0.3, 24), (0.95, 360), (1.0, 10)])
def test_wilsons_bounds_are_where_the_score_test_turns(right, count):
    """At a bound p, the observed share lies exactly z standard errors of p away."""
    for bound in wilson_interval(right, count):
        if 1e-9 < bound < 1 - 1e-9:  # at 0 and 1 the bound is the share itself
            z = abs(right - bound) / np.sqrt(bound * (1 - bound) / count)
            assert z == pytest.approx(stats.norm.ppf(0.975))
    low, high = wilson_interval(right, count)
    assert 0 <= low <= right + 1e-12 and right - 1e-12 <= high <= 1 and low < high
