"""Early stopping by ASHA (asynchronous successive halving, Li et al. 2020), as implemented in Ray Tune."""

from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from kdstudy.store.record import METRIC


class Rungs:
    """Ray's ASHA scheduler, keyed by kdstudy's trial numbers.

    Ray's trial ids change when a search is resumed. The scheduler therefore gets stand-in trials with kdstudy's
    numbers, so that a record can be replayed into it.
    """

    def __init__(self, epochs: list[int], reduction_factor: int):
        self._scheduler = None
        self._known: set[int] = set()
        if epochs:
            # Rungs are grace_period * reduction_factor^k up to max_t; the margin protects the last from rounding.
            self._scheduler = AsyncHyperBandScheduler(
                time_attr="epoch", metric=METRIC, mode="max", grace_period=epochs[0], max_t=epochs[-1] * 1.01,
                reduction_factor=reduction_factor, stop_last_trials=False,
            )

    def passes(self, number: int, epoch: int, accuracy: float) -> bool:
        """Enter a trial's accuracy (0 to 1) at an epoch. Returns False if ASHA would stop the trial."""
        if self._scheduler is None:
            return True
        stand_in = SimpleNamespace(trial_id=str(number))
        if number not in self._known:
            self._known.add(number)
            self._scheduler.on_trial_add(None, stand_in)
        decision = self._scheduler.on_trial_result(None, stand_in, {"epoch": epoch, METRIC: accuracy})
        return decision == TrialScheduler.CONTINUE
