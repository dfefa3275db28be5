"""The surface: validation accuracy as a function of the hyperparameters and the epoch, read off at the budget."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import cho_solve
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from kdstudy.analysis.sensitivity.failures import Failures
from kdstudy.analysis.sensitivity.latest import LATEST
from kdstudy.analysis.sensitivity.process import Member, Rows, drawn
from kdstudy.analysis.sensitivity.space import Dimension

CONFIDENCE = 0.90  # of all intervals of the sensitivity analysis
MOST_OTHERS = 600  # reports before the budget that enter the process
MOST_FOR_FITTING = 400  # reports from which its hyperparameters are drawn
MEMBERS, FEWEST_MEMBERS = 16, 4  # of the ensemble; with many reports all are alike
MANY = 800  # reports, beyond which the ensemble is small
DRAWS = 400
FEW_POINTS = 64  # whose joint draws are exact
KNOWN = 0.5  # of the variance among the trials at the budget; where less is known, trials do not support the surface


class BudgetModel:
    """An ensemble of Gaussian processes over the searched parameters and the logarithm of the epoch, beside failures.

    logit(accuracy) = curve(log epoch) + f(parameters, log epoch) + an effect of the trial + noise; all reports of a
    trial share its effect, such as its seed's luck. Parameters are scaled to 0..1, each on its own scale. The members
    differ in their length scales and variances, which are drawn from their posterior: see `process`. Means are averages
    over the members, draws are pooled. Where training fails (see `failures`), the accuracy is that of chance.

    reports: trial, epoch, accuracy (a share, 0 to 1) and a column per parameter of `space`; epochs beyond `budget` are
        left out.
    budget: the epoch at which the process is read off.
    images: the number of validation images behind an accuracy, which keeps its logit finite at 0 and 1.
    failures: the trials that failed to learn, which are not among the reports.
    """

    def __init__(self, reports: pd.DataFrame, space: dict[str, Dimension], budget: int, images: int = 1000,
                 failures: Failures | None = None):
        self.space, self.budget, self.failures = space, budget, failures
        self.rows = _select(reports, budget)
        self._first = math.log(max(1, self.rows["epoch"].min()))
        inputs = self._inputs(self.rows, self.rows["epoch"].to_numpy())
        share = (self.rows["accuracy"].to_numpy(dtype=float) * images + 0.5) / (images + 1)
        self._z = np.log(share / (1 - share))
        self._middle, self._spread = self._z.mean(), max(self._z.std(), 1e-6)
        numbers = [dimension.kind != "choice" for dimension in space.values() for _ in range(dimension.columns)]
        self._observed = Rows(inputs, pd.factorize(self.rows["trial"])[0], (self._z - self._middle) / self._spread,
                              tuple(np.flatnonzero(numbers)))

    @cached_property
    def made_of(self) -> str:
        """A hash of all that the surface depends on."""
        failures, rows = self.failures, self._observed
        arrays = [rows.x, rows.trial, rows.y, *((failures.learned, failures.failed) if failures is not None else ())]
        numbers = (rows.numbers, self._middle, self._spread, self.budget, failures and failures.chance)
        whole = hashlib.sha256(repr((list(self.space.items()), numbers, [array.shape for array in arrays])).encode())
        for array in arrays:
            whole.update(np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()

    @property
    def is_constant(self) -> bool:
        """Whether all accuracies at the budget are the same, so that there is nothing to explain."""
        full = self.rows["epoch"] == self.budget
        return self._z[full.to_numpy()].std() < 1e-6

    def _inputs(self, parameters: Mapping[str, Any], epochs: np.ndarray) -> np.ndarray:
        """(n, columns + 1): the parameters in 0..1, then the logarithm of the epoch, 1 at the budget."""
        log_epoch = (np.log(epochs) - self._first) / max(math.log(self.budget) - self._first, 1e-9)
        return np.column_stack([places_of(self.space, parameters), log_epoch])

    def _at_budget(self, parameters: dict[str, Sequence[Any]]) -> np.ndarray:
        return self._inputs(parameters, np.full(len(next(iter(parameters.values()))), self.budget))

    @cached_property
    def hyperparameters(self) -> np.ndarray:
        """Those of the ensemble, a row each; where there are many rows, they are drawn from a part of them."""
        return LATEST.of(("hyperparameters", self.made_of), self._drawn)

    def _drawn(self) -> np.ndarray:
        # One thread: more gain little on matrices of this size, and beside running trials they wait for each other.
        with threadpool_limits(1):
            return drawn(self._observed.part(self._part_for_fitting()),
                         MEMBERS if len(self.rows) <= MANY else FEWEST_MEMBERS)

    @cached_property
    def members(self) -> list[Member]:
        """The ensemble on all rows."""
        with threadpool_limits(1):
            return [Member(one, self._observed) for one in self.hyperparameters]

    def _part_for_fitting(self) -> np.ndarray:
        """Indices of at most MOST_FOR_FITTING rows, of whole trials."""
        trial = self._observed.trial
        order = np.random.default_rng(0).permutation(trial.max() + 1)
        reached = self.rows["epoch"].groupby(trial).max().to_numpy()
        order = order[np.argsort(-reached[order], kind="stable")]
        # Alternate between the two ends, to include both full-budget and early-stopped trials.
        mixed = [trial for pair in zip(order, order[::-1], strict=True) for trial in pair]
        counts = np.bincount(trial)
        chosen, total = set(), 0
        for one in mixed:
            if one not in chosen and total + counts[one] <= MOST_FOR_FITTING:
                chosen.add(one)
                total += counts[one]
        return np.flatnonzero(np.isin(trial, list(chosen)))

    def mean(self, parameters: dict[str, Sequence[Any]]) -> np.ndarray:
        """The mean (m,) at the budget over fresh seeds, on the logit scale.

        parameters: (m,) values of each parameter of the space.
        """
        points = self._at_budget(parameters)
        with threadpool_limits(1):
            mean = np.mean([member.mean(points) for member in self.members], axis=0)
        return self._where_it_learns(parameters, self._middle + self._spread * mean)

    def _where_it_learns(self, parameters: dict[str, Sequence[Any]], logits: np.ndarray) -> np.ndarray:
        """The logits (m, ...), but those of chance where training fails."""
        if self.failures is not None:
            logits[self.fails(parameters)] = self.failures.logit
        return logits

    def draws(self, parameters: dict[str, Sequence[Any]], count: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
        """The mean (m,) and joint draws (m, about count) at the budget, as accuracies in percent."""
        mean, draws, _ = self._read_off(parameters, count)
        return mean, draws

    def read_off(self, parameters: dict[str, Sequence[Any]], count: int = DRAWS) -> tuple[np.ndarray, ...]:
        """As `draws`, and which of the points (m,) the trials support.

        Supported is a point where the surface's variance is below what KNOWN leaves of that among the trials, or not
        much above the noise of one trial; and where trials nearby learned.
        """
        mean, draws, variance = self._read_off(parameters, count)
        supported = variance <= self._most_variance
        if self.failures is not None:
            supported &= self.failures.learns(places_of(self.space, parameters))
        if len(mean) > 1 and not supported.any():
            supported = variance <= variance.min()
        return mean, draws, supported

    @cached_property
    def _most_variance(self) -> float:
        """Of a supported point, standardised: at least twice that at the best known trial, so that there is one."""
        full = self.rows[self.rows["epoch"] == self.budget]
        noise = np.mean([member.kernel.effect + member.kernel.noise for member in self.members])
        among = self._observed.y[(self.rows["epoch"] == self.budget).to_numpy()].var()
        least = self._read_off({name: full[name].tolist() for name in self.space}, 0)[2].min()
        return float(max((1 - KNOWN) * among, 4 * noise, 2 * least))

    def fails(self, parameters: dict[str, Sequence[Any]]) -> np.ndarray:
        """At which of the points (m,) training fails, so that the accuracy is that of chance."""
        places = places_of(self.space, parameters)
        return np.zeros(len(places), dtype=bool) if self.failures is None else self.failures.fails(places)

    def supports(self, parameters: dict[str, Sequence[Any]]) -> np.ndarray:
        """Which of the points (m,) the trials support."""
        return self.read_off(parameters, 0)[2]

    def _read_off(self, parameters: dict[str, Sequence[Any]], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means (m,) and draws (m, count) in percent, and the standardised variance (m,)."""
        points, random = self._at_budget(parameters), np.random.default_rng(1)
        each = -(-count // len(self.members))
        with threadpool_limits(1):
            parts = [member.read_off(points, each, random, exact=len(points) <= FEW_POINTS) for member in self.members]
        means, draws, variances = zip(*parts, strict=True)
        mean, draws = (self._where_it_learns(parameters, self._middle + self._spread * part)
                       for part in (np.mean(means, axis=0), np.concatenate(draws, axis=1)))
        return _percent(mean), _percent(draws), np.mean(variances, axis=0) + np.var(means, axis=0)

    def leave_trial_out(self) -> pd.DataFrame:
        """Each trial's accuracy at the budget, in percent, against the prediction of the other trials.

        Columns trial, observed, low, high (at CONFIDENCE), inside. The ensemble is not drawn again; closed form for
        blocks of rows: Ginsbourger and Schärer, "Fast calculation of Gaussian process multiple-fold cross-validation",
        2021.
        """
        trial, y = self._observed.trial, self._observed.y
        at_budget = self.rows["epoch"].to_numpy() == self.budget
        blocks = [np.flatnonzero(trial == one) for one in np.unique(trial[at_budget])]
        with threadpool_limits(1):
            parts = [self._left_out(member, blocks, at_budget) for member in self.members]
        means, deviations = (np.array(part) for part in zip(*parts, strict=True))
        ends = [_mixture_quantile(means, deviations, level) for level in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)]
        last = [block[at_budget[block]][0] for block in blocks]
        low, observed, high = (_percent(self._middle + self._spread * value) for value in (ends[0], y[last], ends[1]))
        return pd.DataFrame({"trial": self.rows["trial"].to_numpy()[last].astype(int), "observed": observed, "low": low,
                             "high": high, "inside": (low <= observed) & (observed <= high)})

    def _left_out(self, member: Member, blocks: list[np.ndarray], at_budget: np.ndarray) -> tuple[list, list]:
        """A member's mean and deviation, of the report at the budget, given all trials but that of the block."""
        inverse = cho_solve((member.lower, True), np.eye(len(self.rows)), check_finite=False)
        means, deviations = [], []
        for block in blocks:
            covariance = np.linalg.inv(inverse[np.ix_(block, block)])
            at = int(np.flatnonzero(at_budget[block])[0])
            means.append(float((self._observed.y[block] - covariance @ member.weights[block])[at]))
            deviations.append(math.sqrt(max(covariance[at, at], 1e-12)))
        return means, deviations


def _mixture_quantile(means: np.ndarray, deviations: np.ndarray, level: float) -> np.ndarray:
    """The quantile (k,) of equal mixtures of normal distributions, means and deviations (members, k); by bisection."""
    low, high = (means - 9 * deviations).min(0), (means + 9 * deviations).max(0)
    for _ in range(60):
        middle = (low + high) / 2
        below = ndtr((middle - means) / deviations).mean(0) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def places_of(space: dict[str, Dimension], parameters: Mapping[str, Any]) -> np.ndarray:
    """(n, columns): n values of each parameter in 0..1, as the columns of `Dimension.unit`."""
    return np.column_stack([dimension.unit(list(parameters[name])) for name, dimension in space.items()])


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
