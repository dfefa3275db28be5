"""A Gaussian process over parameters and epoch, whose hyperparameters are drawn rather than fixed.

One best set of length scales is too sure of itself where trials are few: it fits what it happens to see, and its
intervals know nothing of the other sets that fit as well. So an ensemble is drawn from their posterior, and everything
is averaged or pooled over it. Sources: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006 (chapter
5; its section 5.1 has the factor analysis distance); Duvenaud, Nickisch and Rasmussen, "Additive Gaussian processes",
2011; Murray, Adams and MacKay, "Elliptical slice sampling", 2010, used as Nishihara, Murray and Adams ("Parallel MCMC
with generalized elliptical slice sampling", 2014) do, around a normal approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

ROOT5 = math.sqrt(5)
FREQUENCIES = 256  # of the random Fourier features behind joint draws at many points
BURN_IN, BETWEEN = 10, 2  # steps of the sampler before the first member and between members
FIRST = 6  # hyperparameters before the length scales
WIDER = 1.5  # the normal approximation's standard deviations, times this, so that the sampler can reach the tails


@dataclass(frozen=True)
class Rows:
    """What was observed: standardised values y (n,) at inputs x (n, d), the last of them the log epoch, of trials (n,).

    numbers: the columns of x that are numbers rather than choices.
    """

    x: np.ndarray
    trial: np.ndarray
    y: np.ndarray
    numbers: tuple[int, ...]

    @property
    def bends(self) -> tuple[int, ...]:
        """The columns along whose common direction the surface may change: those of numbers, where there are several.
        """
        return self.numbers if len(self.numbers) > 1 else ()

    def part(self, chosen: np.ndarray) -> Rows:
        return Rows(self.x[chosen], self.trial[chosen], self.y[chosen], self.numbers)

    @cached_property
    def same(self) -> np.ndarray:
        """1 where two rows are of one trial, else 0, (n, n)."""
        return (self.trial[:, None] == self.trial).astype(float)

    @cached_property
    def squares(self) -> np.ndarray:
        """The squared differences per input, (d, n, n)."""
        return (self.x.T[:, :, None] - self.x.T[:, None, :]) ** 2


@dataclass(frozen=True)
class Prior:
    """Independent normal priors of all hyperparameters: the logarithms of variances and length scales, and the bend.

    Their order: variance of the learning curve that all share, variance of the surface, variance of what each number
    does alone, variance of a trial's effect, variance of the noise, growth of the surface; a length scale per input;
    the bend, a number per input of `Rows.bends`. Variances are shares of that of all values, lengths shares of a range.
    The priors say: a surface about as large as the differences seen, as smooth as a parabola, with noise well below;
    each by a factor of 2 or more either way.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> Prior:
        inputs, bends = rows.x.shape[1], len(rows.bends)
        variances = np.log([1.0, 0.3, 0.1, 0.005, 0.005])
        mean = [*variances, 0.3, *[math.log(1.2)] * inputs, *[0.0] * bends]
        deviation = [*[1.5] * len(variances), 0.7, *[0.9] * inputs, *[1.0] * bends]
        return cls(np.array(mean), np.array(deviation))


def matern(squares: np.ndarray) -> np.ndarray:
    """The Matern-5/2 correlation at squared scaled distances."""
    return _matern(squares)[0]


def _matern(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Matern-5/2 correlation, and the two factors of -6/5 of its derivative by the squared distance."""
    scaled = ROOT5 * np.sqrt(squares)
    fall, first = np.exp(-scaled), 1 + scaled
    return (first + 5 / 3 * squares) * fall, first, fall


class Kernel:
    """The covariance for one set of hyperparameters of `rows`, in the order of `Prior`.

    shared x Matern(epoch) + surface x Matern(parameters, epoch) + alone x sum_i Matern(number i, epoch) + the effect of
    a trial + noise. The squared distance of the second is sum_i (d_i / l_i)^2 + (bend . d)^2: the second term lets a
    ridge run diagonally. The third is what each number does whatever the others are. A search leaves the bad end of a
    range almost without trials; there the second alone falls back to the mean of all, and the number would seem to
    matter less than it does. The standard deviation of both changes by a factor of exp(growth) from the first epoch to
    the last: trials mostly drift apart.
    """

    def __init__(self, values: np.ndarray, rows: Rows):
        inputs, self.numbers = rows.x.shape[1], rows.numbers
        self.shared, self.surface, self.alone, self.effect, self.noise = np.exp(values[:FIRST - 1])
        self.growth, self.lengths = values[FIRST - 1], np.exp(values[FIRST:FIRST + inputs])
        self.bend = np.zeros(inputs)
        self.bend[list(rows.bends)] = values[FIRST + inputs:]

    @property
    def factor(self) -> np.ndarray:
        """(d, d + 1) matrix F, so that the squared distance of the surface is |difference @ F|^2."""
        return np.column_stack([np.diag(1 / self.lengths), self.bend])

    def between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The covariance of the first three parts, without effects of trials and noise, at (m, d), (n, d): (m, n).
        """
        factor = self.factor
        left, right = one @ factor, other @ factor
        squares = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
        at = one[:1, -1:] if np.ptp(one[:, -1]) == 0 else one[:, -1:]  # points mostly lie at one epoch
        epochs = ((at - other[:, -1]) / self.lengths[-1]) ** 2
        both = self.surface * matern(np.maximum(squares, 0))
        for number in self.numbers:
            apart = (one[:, number, None] - other[:, number]) / self.lengths[number]
            both += self.alone * matern(apart**2 + epochs)
        return self.shared * matern(epochs) + np.outer(self.grown(one), self.grown(other)) * both

    def grown(self, points: np.ndarray) -> np.ndarray:
        """By what factor (m,) the second and third part differ at (m, d) from the last epoch."""
        return np.exp(self.growth * (points[:, -1] - 1))

    def variance(self, points: np.ndarray) -> np.ndarray:
        """The diagonal (m,) of `between` these points and themselves."""
        return self.shared + (self.surface + self.alone * len(self.numbers)) * self.grown(points)**2


def log_posterior(values: np.ndarray, rows: Rows, prior: Prior, slope: bool = True) -> tuple[float, np.ndarray]:
    """The logarithm of prior times marginal likelihood, without constants, and its gradient; -inf where impossible.

    Without `slope` the gradient is left at zero, which takes a third of the time.
    """
    count, inputs = rows.x.shape
    kernel, bends = Kernel(values, rows), list(rows.bends)
    across, grown = rows.x @ kernel.bend, kernel.grown(rows.x)
    along = across[:, None] - across
    squares = np.tensordot(kernel.lengths**-2, rows.squares, 1)
    squares += along**2
    epochs = rows.squares[-1] / kernel.lengths[-1] ** 2
    size = np.outer(grown, grown)
    correlation, *surface_slope = _matern(squares)
    curve, surface = kernel.shared * matern(epochs), kernel.surface * size * correlation
    parts = [_matern(rows.squares[number] / kernel.lengths[number] ** 2 + epochs) for number in rows.numbers]
    alone = kernel.alone * size * sum(part[0] for part in parts)
    total = curve + surface + alone + kernel.effect * rows.same
    total[np.diag_indices(count)] += kernel.noise + 1e-8
    apart = (values - prior.mean) / prior.deviation
    gradient = np.zeros(len(values))
    try:
        lower = cholesky(total, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return -math.inf, gradient
    weights = cho_solve((lower, True), rows.y, check_finite=False)
    value = -0.5 * rows.y @ weights - np.log(np.diag(lower)).sum() - 0.5 * apart @ apart
    if slope:
        inner = 0.5 * (np.outer(weights, weights) - cho_solve((lower, True), np.eye(count), check_finite=False))
        gradient[:FIRST - 1] = ((inner * curve).sum(), (inner * surface).sum(), (inner * alone).sum(),
                                kernel.effect * (inner * rows.same).sum(), kernel.noise * np.trace(inner))
        gradient[FIRST - 1] = 2 * (inner * (surface + alone)).sum(1) @ (rows.x[:, -1] - 1)
        inner_size, lengths = -5 / 6 * inner * size, gradient[FIRST:FIRST + inputs]
        steep = kernel.surface * inner_size * surface_slope[0] * surface_slope[1]
        lengths -= 2 * np.tensordot(rows.squares, steep, 2) / kernel.lengths**2
        for number, (_, first, fall) in zip(rows.numbers, parts, strict=True):
            own = kernel.alone * inner_size * first * fall
            lengths[number] -= 2 * (rows.squares[number] * own).sum() / kernel.lengths[number] ** 2
            lengths[-1] -= 2 * (own * epochs).sum()
        _, first, fall = _matern(epochs)
        lengths[-1] += 5 / 3 * (inner * kernel.shared * first * fall * epochs).sum()
        steep *= along
        gradient[FIRST + inputs:] = 2 * ((steep.sum(1) - steep.sum(0)) @ rows.x[:, bends])
        gradient -= apart / prior.deviation
    return float(value), gradient


def most_probable(rows: Rows, prior: Prior) -> np.ndarray:
    """The hyperparameters at the maximum of the posterior, from starts with a bend either way."""
    starts, signs = [], len(rows.bends)
    for side in (1, -1) if signs else (0,):
        start = prior.mean.copy()
        if signs:
            start[-signs:] = 0.5 * np.power(float(side), np.arange(signs))
        starts.append(start)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = log_posterior(values, rows, prior)
        return (1e10, gradient) if value == -math.inf else (-value, -gradient)

    limits = list(zip(prior.mean - 4 * prior.deviation, prior.mean + 4 * prior.deviation, strict=True))
    found = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 60})
             for start in starts]
    return min(found, key=lambda one: one.fun).x


def drawn(rows: Rows, count: int) -> np.ndarray:
    """`count` sets of hyperparameters from their posterior, (count, hyperparameters); the same for the same rows."""
    prior = Prior.of(rows)
    middle = most_probable(rows, prior)
    factor = WIDER * _normal_approximation(middle, rows, prior)
    random, values, found = np.random.default_rng(0), middle, []

    def excess(values: np.ndarray) -> float:
        """The logarithm of the posterior over the normal approximation."""
        apart = np.linalg.solve(factor, values - middle)
        return log_posterior(values, rows, prior, slope=False)[0] + 0.5 * apart @ apart

    now = excess(values)
    for step in range(BURN_IN + count * BETWEEN):
        values, now = _slice(values, now, excess, middle, middle + factor @ random.standard_normal(len(middle)), random)
        if step >= BURN_IN and (step - BURN_IN) % BETWEEN == BETWEEN - 1:
            found.append(values)
    return np.array(found)


def _slice(values: np.ndarray, now: float, excess: Callable[[np.ndarray], float], middle: np.ndarray,
           other: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """A step of elliptical slice sampling: from `values`, whose excess is `now`, along the ellipse through `other`."""
    least = now + math.log(random.random())
    angle = random.uniform(0, 2 * math.pi)
    low, high = angle - 2 * math.pi, angle
    for _ in range(40):
        proposed = middle + (values - middle) * math.cos(angle) + (other - middle) * math.sin(angle)
        height = excess(proposed)
        if height > least:
            return proposed, height
        low, high = (angle, high) if angle < 0 else (low, angle)
        angle = random.uniform(low, high)
    return values, now


def _normal_approximation(middle: np.ndarray, rows: Rows, prior: Prior) -> np.ndarray:
    """The lower factor of the covariance of Laplace's approximation; nowhere wider than the prior."""
    size, step = len(middle), 1e-3
    bent = np.empty((size, size))
    for index in range(size):
        ends = []
        for side in (1, -1):
            moved = middle.copy()
            moved[index] += side * step
            ends.append(log_posterior(moved, rows, prior)[1])
        bent[index] = (ends[1] - ends[0]) / (2 * step)
    scaled = (bent + bent.T) / 2 * np.outer(prior.deviation, prior.deviation)
    sizes, axes = np.linalg.eigh(scaled)
    return cholesky((axes / np.maximum(sizes, 1.0)) @ axes.T * np.outer(prior.deviation, prior.deviation)
                    + 1e-12 * np.eye(size), lower=True)


class Member:
    """The process given one set of hyperparameters."""

    def __init__(self, values: np.ndarray, rows: Rows):
        self.rows, self.kernel = rows, Kernel(values, rows)
        total = self.kernel.between(rows.x, rows.x) + self.kernel.effect * rows.same
        total[np.diag_indices(len(rows.y))] += self.kernel.noise + 1e-8
        self.lower = cholesky(total, lower=True, check_finite=False)
        self.weights = cho_solve((self.lower, True), rows.y, check_finite=False)

    def mean(self, points: np.ndarray) -> np.ndarray:
        """The posterior mean (m,) of the surface at (m, d)."""
        return self.kernel.between(points, self.rows.x) @ self.weights

    def read_off(self, points: np.ndarray, count: int, random: np.random.Generator,
                 exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The posterior mean (m,), joint draws (m, count) and variance (m,) of the surface.

        points: (m, d). Without `exact` the draws are those of a close approximation, which takes time and memory that
        grow with the points, not with their square or cube.
        """
        across = self.kernel.between(points, self.rows.x)
        half = solve_triangular(self.lower, across.T, lower=True, check_finite=False)
        left = np.maximum(self.kernel.variance(points) - np.einsum("ij,ij->j", half, half), 0)
        if count == 0:
            draws = np.empty((len(points), 0))
        elif exact:
            draws = self._exact_draws(points, across, half, count, random)
        else:
            draws = self._draws(points, across, count, random)
        return across @ self.weights, draws, left

    def _exact_draws(self, points: np.ndarray, across: np.ndarray, half: np.ndarray, count: int,
                     random: np.random.Generator) -> np.ndarray:
        covariance = self.kernel.between(points, points) - half.T @ half
        sizes, axes = np.linalg.eigh(covariance)  # which also serves where points coincide
        noise = random.standard_normal((len(points), count))
        return (across @ self.weights)[:, None] + (axes * np.sqrt(np.maximum(sizes, 0))) @ noise

    def _draws(self, points: np.ndarray, across: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """By Matheron's rule from draws of the prior, which are sums of random Fourier features: Wilson et al.,
        "Efficiently sampling functions from Gaussian process posteriors", 2020.
        """
        kernel, rows = self.kernel, self.rows
        both = np.vstack([points, rows.x])
        prior = math.sqrt(kernel.surface) * _features(both @ kernel.factor, count, random)
        for number in kernel.numbers:
            # The points of a grid share few values of one number, so there are few features to compute.
            own, place = np.unique(both[:, [number, -1]], axis=0, return_inverse=True)
            drawn_alone = _features(own / kernel.lengths[[number, -1]], count, random)
            prior += math.sqrt(kernel.alone) * drawn_alone[place.ravel()]
        prior *= kernel.grown(both)[:, None]
        epochs, place = np.unique(both[:, -1:], return_inverse=True)
        curve = _features(epochs[:, None] / kernel.lengths[-1], count, random)
        prior += math.sqrt(kernel.shared) * curve[place.ravel()]
        effects = math.sqrt(kernel.effect) * random.standard_normal((rows.trial.max() + 1, count))
        noise = math.sqrt(kernel.noise) * random.standard_normal((len(rows.y), count))
        missed = rows.y[:, None] - prior[len(points):] - effects[rows.trial] - noise
        return prior[:len(points)] + across @ cho_solve((self.lower, True), missed, check_finite=False)


def _features(scaled: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Draws (m, count) of a process of variance 1 with a Matern-5/2 covariance over scaled inputs (m, k)."""
    normal = random.standard_normal((scaled.shape[1], FREQUENCIES))
    angles = scaled @ (normal / np.sqrt(random.chisquare(5, FREQUENCIES) / 5))
    weights = random.standard_normal((2, FREQUENCIES, count)) / math.sqrt(FREQUENCIES)
    return np.cos(angles) @ weights[0] + np.sin(angles) @ weights[1]
