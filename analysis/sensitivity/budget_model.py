"""The Gaussian process: validation accuracy as a function of the hyperparameters and the epoch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from kdstudy.analysis.sensitivity.space import Dimension

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

CONFIDENCE = 0.90  # of all intervals of the sensitivity analysis
MOST_OTHERS = 600  # reports before the budget that enter the process
MOST_FOR_FITTING = 400  # reports to which its length scales are fitted
DRAWS = 400


class BudgetModel:
    """A Gaussian process over the searched parameters and the logarithm of the epoch.

    logit(accuracy) = f(parameters, log epoch) + an effect of the trial + noise. f has a constant times a Matern kernel
    with nu = 5/2 and a length scale per input; all reports of a trial share its effect, such as its seed's luck.
    Parameters are scaled to 0..1, each on its own scale. Length scales and variances maximise the marginal likelihood
    (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapter 5).

    reports: trial, epoch, accuracy (a share, 0 to 1) and a column per parameter of `space`; epochs beyond `budget` are
        left out.
    budget: the epoch at which the process is read off.
    images: the number of validation images behind an accuracy, which keeps its logit finite at 0 and 1.
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
        """Whether all accuracies at the budget are the same, so that there is nothing to explain."""
        full = self.rows["epoch"] == self.budget
        return self._z[full.to_numpy()].std() < 1e-6

    def _inputs(self, parameters: dict[str, Sequence[Any]], epochs: np.ndarray) -> np.ndarray:
        """(n, columns + 1): the parameters in 0..1, then the logarithm of the epoch, 1 at the budget."""
        log_epoch = (np.log(epochs) - self._first) / max(math.log(self.budget) - self._first, 1e-9)
        return np.column_stack([*(dimension.unit(parameters[name]) for name, dimension in self.space.items()),
                                log_epoch])

    @cached_property
    def _process(self) -> GaussianProcessRegressor:
        """The process on all rows; where there are many, its kernel is fitted to a part of them."""
        # scikit-learn takes a second to import, which a report without enough trials need not wait for.
        from sklearn.exceptions import ConvergenceWarning

        from kdstudy.analysis.sensitivity.kernels import budget_kernel, regressor

        x, y = self._x, (self._z - self._middle) / self._spread
        part = self._part_for_fitting()
        # One thread: more gain little on matrices of this size, and beside running trials they wait for each other.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: an input without effect
            fitted = regressor(budget_kernel(x.shape[1] - 1), optimise=True).fit(x[part], y[part])
        return fitted if len(part) == len(x) else regressor(fitted.kernel_, optimise=False).fit(x, y)

    def _part_for_fitting(self) -> np.ndarray:
        """Indices of at most MOST_FOR_FITTING rows, of whole trials."""
        order = np.random.default_rng(0).permutation(int(self._x[:, 0].max()) + 1)
        reached = self.rows["epoch"].groupby(self._x[:, 0]).max().to_numpy()
        order = order[np.argsort(-reached[order], kind="stable")]
        # Alternate between the two ends, to include both full-budget and early-stopped trials.
        mixed = [trial for pair in zip(order, order[::-1], strict=True) for trial in pair]
        counts = np.bincount(self._x[:, 0].astype(int))
        chosen, total = set(), 0
        for trial in mixed:
            if trial not in chosen and total + counts[trial] <= MOST_FOR_FITTING:
                chosen.add(trial)
                total += counts[trial]
        return np.flatnonzero(np.isin(self._x[:, 0], list(chosen)))

    def posterior(self, parameters: dict[str, Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and covariance (m, m) of f at the budget, on the logit scale: the average over fresh seeds.

        parameters: (m,) values of each parameter of the space.
        """
        points, across, mean = self._across(parameters)
        half = solve_triangular(self._process.L_, across.T, lower=True, check_finite=False)
        covariance = self._kernel(points) - half.T @ half
        return self._middle + self._spread * mean, self._spread**2 * covariance

    def mean(self, parameters: dict[str, Sequence[Any]]) -> np.ndarray:
        """The mean (m,) of f at the budget, on the logit scale."""
        return self._middle + self._spread * self._across(parameters)[2]

    @property
    def _kernel(self) -> Any:
        """The covariance of f: without the effects of trials and without noise."""
        return self._process.kernel_.k1.k1

    def _across(self, parameters: dict[str, Sequence[Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs at the budget (m, d), their covariance with the rows (m, n), and the standardised mean there (m,)."""
        count = len(next(iter(parameters.values())))
        points = np.column_stack([np.zeros(count), self._inputs(parameters, np.full(count, self.budget))])
        across = self._kernel(points, self._x)
        return points, across, across @ self._process.alpha_.ravel()

    def draws(self, parameters: dict[str, Sequence[Any]], count: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
        """The posterior mean (m,) and draws (m, count) at the budget, as accuracies in percent.

        Raises ValueError where the covariance is not positive definite, even with jitter.
        """
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
        """Each trial's accuracy at the budget, in percent, against the prediction of the other trials.

        Columns trial, observed, low, high (at CONFIDENCE), inside. The kernel is not fitted again; closed form for
        blocks of rows: Ginsbourger and Schärer, "Fast calculation of Gaussian process multiple-fold cross-validation",
        2021.
        """
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
    """All reports at the budget and at most MOST_OTHERS before it: at eight epochs, and the last one of each trial."""
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
