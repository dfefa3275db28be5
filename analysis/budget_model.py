"""The Gaussian process behind `analysis.sensitivity`: accuracy as a function of the hyperparameters and the budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # scikit-learn takes a second to import, which those who only read a study need not wait for
    from sklearn.gaussian_process import GaussianProcessRegressor

CONFIDENCE = 0.90
MOST_OTHERS = 600  # reports before the full budget that enter the process
MOST_FOR_FITTING = 400  # reports that its length scales are fitted to
DRAWS = 400


@dataclass(frozen=True)
class Dimension:
    """One searched parameter: `{"log": [low, high]}`, `{"linear": [low, high]}` or `{"choice": [...]}`."""

    name: str
    kind: str
    values: tuple[Any, ...]  # low and high, or the choices

    @classmethod
    def of(cls, name: str, described: dict[str, Any]) -> Dimension:
        (kind, values), = described.items()
        return cls(name, kind, tuple(values))

    @property
    def columns(self) -> int:
        return len(self.values) if self.kind == "choice" else 1

    def unit(self, values: Sequence[Any]) -> np.ndarray:
        """(n,) values in their own unit to (n, columns): 0 at the low bound, 1 at the high one, on their own scale.

        A choice becomes a column per value; two different choices lie 1 apart.
        """
        if self.kind == "choice":
            return np.array([[value == choice for choice in self.values] for value in values]) / math.sqrt(2)
        scale = np.log if self.kind == "log" else np.asarray
        low, high = scale(np.array(self.values, dtype=float))
        return ((scale(np.asarray(values, dtype=float)) - low) / (high - low))[:, None]

    def at(self, unit: np.ndarray) -> list[Any]:
        """The values at places 0 to 1 of the range; choices share it equally."""
        if self.kind == "choice":
            return [self.values[min(int(place * len(self.values)), len(self.values) - 1)] for place in unit]
        low, high = map(float, self.values)
        return [float(low * (high / low) ** u if self.kind == "log" else low + u * (high - low)) for u in unit]

    def axis(self, count: int, also: Any) -> list[Any]:
        """About `count` values from bound to bound, `also` among them; a choice gives all of its values."""
        if self.kind == "choice":
            return list(self.values)
        places = np.linspace(0, 1, count)
        if also is not None:
            # The default takes the place of the inner value next to it, so that the grid does not grow.
            place = float(np.clip(self.unit([also])[0, 0], 0, 1))
            nearest = int(np.argmin(abs(places - place)))
            if count > 2 and 0 < place < 1:
                nearest = min(max(nearest, 1), count - 2)
            places[nearest] = place
        return self.at(places)

    def weights(self, axis: Sequence[Any]) -> np.ndarray:
        """The share of the range that each value of an axis stands for."""
        if self.kind == "choice" or len(axis) == 1:
            return np.full(len(axis), 1 / len(axis))
        places = self.unit(axis)[:, 0]
        borders = np.concatenate([[places[0]], (places[1:] + places[:-1]) / 2, [places[-1]]])
        return np.diff(borders) / (places[-1] - places[0])


class BudgetModel:
    """A Gaussian process over the searched parameters and the logarithm of the epoch.

    logit(accuracy) = f(parameters, log epoch) + an effect of the trial + noise, where f has a constant times a Matern
    kernel with nu = 5/2 and a length scale per input, and the effect of a trial (its seed) is shared by its reports.
    Parameters are scaled to 0..1, each on its own scale. Length scales and variances are those of the largest
    marginal likelihood (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapter 5).

    reports: trial, epoch, accuracy and a column per parameter of `space`; those beyond `budget` are left out.
    images: how many validation images the accuracies were measured on, which bounds how close to 0 and 1 they count.
    """

    def __init__(self, reports: pd.DataFrame, space: dict[str, Dimension], budget: int, images: int = 1000):
        self.space, self.budget = space, budget
        self.rows = _select(reports, budget)
        self._first = math.log(max(1, self.rows["epoch"].min()))
        inputs = self._inputs({name: self.rows[name].tolist() for name in space}, self.rows["epoch"].to_numpy())
        self._x = np.column_stack([pd.factorize(self.rows["trial"])[0], inputs])
        share = (self.rows["accuracy"].to_numpy(dtype=float) * images + 0.5) / (images + 1)
        self._z = np.log(share / (1 - share))
        self._middle, self._spread = self._z.mean(), self._z.std()

    @property
    def is_constant(self) -> bool:
        """Whether all accuracies are the same, so that there is nothing to explain."""
        full = self.rows["epoch"] == self.budget
        return self._z[full.to_numpy()].std() < 1e-6

    def _inputs(self, parameters: dict[str, Sequence[Any]], epochs: np.ndarray) -> np.ndarray:
        """(n, columns + 1): the parameters in 0..1, then the logarithm of the epoch, 1 at the budget."""
        log_epoch = (np.log(epochs) - self._first) / max(math.log(self.budget) - self._first, 1e-9)
        return np.column_stack([*(dimension.unit(parameters[name]) for name, dimension in self.space.items()),
                                log_epoch])

    @cached_property
    def _process(self) -> GaussianProcessRegressor:
        """The process, with its kernel fitted to a part of the rows where there are many."""
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        from kdstudy.analysis.kernels import budget_kernel, regressor

        x, y = self._x, (self._z - self._middle) / self._spread
        part = self._part_for_fitting()
        # One thread: on matrices of this size more of them gain little, and beside running trials they wait for ever.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: an input without effect
            fitted = regressor(budget_kernel(x.shape[1] - 1), optimise=True).fit(x[part], y[part])
        return fitted if len(part) == len(x) else regressor(fitted.kernel_, optimise=False).fit(x, y)

    def _part_for_fitting(self) -> np.ndarray:
        """Whole trials, those that came furthest first, until there are rows enough."""
        order = np.random.default_rng(0).permutation(int(self._x[:, 0].max()) + 1)
        reached = self.rows["epoch"].groupby(self._x[:, 0]).max().to_numpy()
        order = order[np.argsort(-reached[order], kind="stable")]
        # Half of the rows from trials that came furthest, half from any, so that stopped ones are not forgotten.
        mixed = [trial for pair in zip(order, order[::-1], strict=True) for trial in pair]
        counts = np.bincount(self._x[:, 0].astype(int))
        chosen, total = set(), 0
        for trial in mixed:
            if trial not in chosen and total + counts[trial] <= MOST_FOR_FITTING:
                chosen.add(trial)
                total += counts[trial]
        return np.flatnonzero(np.isin(self._x[:, 0], list(chosen)))

    def posterior(self, parameters: dict[str, Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and covariance (m, m) of f at the budget, in logits: what a fresh seed gives on average."""
        from scipy.linalg import solve_triangular

        points, across, mean = self._across(parameters)
        half = solve_triangular(self._process.L_, across.T, lower=True, check_finite=False)
        covariance = self._kernel(points) - half.T @ half
        return self._middle + self._spread * mean, self._spread**2 * covariance

    def mean(self, parameters: dict[str, Sequence[Any]]) -> np.ndarray:
        """The mean (m,) of f at the budget, in logits."""
        return self._middle + self._spread * self._across(parameters)[2]

    @property
    def _kernel(self) -> Any:
        """The covariance of f: without the effects of trials and without noise."""
        return self._process.kernel_.k1.k1

    def _across(self, parameters: dict[str, Sequence[Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs at the budget, their covariance with the rows, and the standardised mean there."""
        count = len(next(iter(parameters.values())))
        points = np.column_stack([np.zeros(count), self._inputs(parameters, np.full(count, self.budget))])
        across = self._kernel(points, self._x)
        return points, across, across @ self._process.alpha_.ravel()

    def draws(self, parameters: dict[str, Sequence[Any]], count: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
        """The posterior mean (m,) and draws (m, count) at the budget, as accuracies in percent."""
        from scipy.linalg import cholesky

        mean, covariance = self.posterior(parameters)
        size, scale = len(mean), float(np.trace(covariance)) / len(mean)
        factor = None
        for jitter in (1e-8, 1e-6, 1e-4):
            try:
                covariance[np.diag_indices(size)] += jitter * max(scale, self._spread**2 * 1e-4)
                factor = cholesky(covariance, lower=True, check_finite=False)
                break
            except np.linalg.LinAlgError:
                continue
        if factor is None:
            raise ValueError("the covariance of the fitted surface is not positive definite")
        noise = np.random.default_rng(1).standard_normal((size, count))
        return _percent(mean), _percent(mean[:, None] + factor @ noise)

    def leave_trial_out(self) -> pd.DataFrame:
        """Each trial's accuracy at the budget, in percent, against what the other trials predict for it.

        Columns trial, observed, low, high (CONFIDENCE), inside. Closed form for blocks of rows, the kernel kept:
        Ginsbourger and Schärer, "Fast calculation of Gaussian process multiple-fold cross-validation", 2021.
        """
        from scipy.linalg import cho_solve
        from scipy.stats import norm

        process, rows = self._process, []
        inverse = cho_solve((process.L_, True), np.eye(len(self._x)), check_finite=False)
        alpha, y = process.alpha_.ravel(), (self._z - self._middle) / self._spread
        quantile = norm.ppf((1 + CONFIDENCE) / 2)
        epochs = self.rows["epoch"].to_numpy()
        for trial in np.unique(self._x[epochs == self.budget, 0]):
            block = np.flatnonzero(self._x[:, 0] == trial)
            covariance = np.linalg.inv(inverse[np.ix_(block, block)])
            mean = y[block] - covariance @ alpha[block]
            at = int(np.flatnonzero(epochs[block] == self.budget)[0])
            half = quantile * math.sqrt(max(covariance[at, at], 0))
            low, observed, high = (_percent(self._middle + self._spread * value)
                                   for value in (mean[at] - half, y[block[at]], mean[at] + half))
            rows.append({"trial": int(self.rows["trial"].iloc[block[0]]), "observed": observed, "low": low,
                         "high": high, "inside": bool(low <= observed <= high)})
        return pd.DataFrame(rows)


def _percent(logits: Any) -> Any:
    return 100 / (1 + np.exp(-logits))


def _select(reports: pd.DataFrame, budget: int) -> pd.DataFrame:
    """All reports at the budget, and at most MOST_OTHERS others: a ladder of epochs, and the last of each trial."""
    reports = reports[reports["epoch"] <= budget].sort_values(["trial", "epoch"], ignore_index=True)
    full = reports["epoch"] == budget
    epochs = np.sort(reports.loc[~full, "epoch"].unique())
    if not len(epochs):
        return reports
    ladder = {int(epochs[abs(epochs - rung).argmin()]) for rung in np.geomspace(epochs[0], epochs[-1], 8)}
    last = ~reports.duplicated("trial", keep="last")
    others = reports.index[~full & (last | reports["epoch"].isin(ladder))]
    if len(others) > MOST_OTHERS:
        others = np.random.default_rng(0).choice(others, MOST_OTHERS, replace=False)
    return reports.loc[np.union1d(reports.index[full], others)].reset_index(drop=True)
