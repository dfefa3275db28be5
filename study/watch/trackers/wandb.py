"""The Weights & Biases tracker."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from typing import Any

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.store.record import TrialState
from kdstudy.store.storage import Storage
from kdstudy.watch.trackers.base import Run, values_of


class WeightsAndBiases:
    """One W&B run per trial, using Ray's WandbLoggerCallback, whose processes run next to the driver.

    A resumed trial continues its run. Trials that ended before this driver started are not sent again."""

    setting = package = "wandb"
    folder = None  # W&B uploads its files itself

    def __init__(self, config: StudyConfig, storage: Storage):
        project = config.watch.wandb
        from ray.air.integrations.wandb import WandbLoggerCallback

        mode = os.environ.get("WANDB_MODE")
        self._callback = WandbLoggerCallback(project=project, resume="allow",
                                             **({"mode": mode} if mode else {}))
        self._since, self._running = time.time(), set[Run]()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it warns about Ray's use of its API
                self._callback.setup()
        except ValueError:
            raise UserError(f"watch.wandb = {project!r} needs a key: run `wandb login`, or set WANDB_API_KEY, or "
                            "WANDB_MODE=offline to keep the runs here for `wandb sync`") from None

    def open(self) -> bool:
        import ray

        return ray.is_initialized()

    def begin(self, run: Run, trial: TrialState) -> float:
        if trial.state != "running" and trial.heard < self._since:
            return math.inf
        self._running.add(run)
        self._callback.log_trial_start(run)
        return 0

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        self._running.add(run)
        for report in reports:
            self._callback.log_trial_result(report["epoch"], run, values_of(report) | {
                "epoch": report["epoch"], "training_iteration": report["epoch"]})

    def end(self, run: Run, failed: bool) -> None:
        self._running.discard(run)
        self._callback.log_trial_end(run, failed)

    def close(self, seconds: float) -> None:
        if self.open():
            for run in tuple(self._running):
                self.end(run, failed=False)
            # As in the callback's on_experiment_end, but with our own timeout.
            self._callback._cleanup_logging_actors(timeout=seconds, kill_on_timeout=True)
