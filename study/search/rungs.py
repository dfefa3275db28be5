"""Early stopping by ASHA (asynchronous successive halving, Li et al. 2020)."""

import math

import numpy as np


class Rungs:
    """The accuracies (0 to 1) that trials had at each rung, and what they mean for others.

    The rule is that of Ray Tune's AsyncHyperBandScheduler with one bracket, which cannot be used itself: it enters a
    trial when it decides on it, and knows no order but that of the reports.
    """

    def __init__(self, epochs: list[int], reduction_factor: int):
        self._quantile = 100 * (1 - 1 / reduction_factor)
        self._entered: dict[int, dict[int, float]] = {epoch: {} for epoch in epochs}

    def enter(self, number: int, epoch: int, accuracy: float) -> None:
        """Enter a trial at the rung at an epoch."""
        self._entered[epoch][number] = accuracy

    def is_good_enough(self, epoch: int, accuracy: float, among: float = math.inf) -> bool:
        """Whether an accuracy at a rung is among the best 1/reduction_factor of the trials entered there.

        among: only trials with numbers up to this one count."""
        others = [value for number, value in self._entered[epoch].items() if number <= among]
        return not others or accuracy >= np.percentile(others, self._quantile)

    def passes(self, number: int, epoch: int, accuracy: float) -> bool:
        """Take a report, which counts at the highest rung that it has reached and where the trial is not yet entered.
        Returns False if the trial should be stopped."""
        for rung, entered in reversed(self._entered.items()):
            if rung <= epoch and number not in entered:
                passes = self.is_good_enough(rung, accuracy)
                self.enter(number, rung, accuracy)
                return passes
        return True
