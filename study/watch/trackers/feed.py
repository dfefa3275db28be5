"""Feed trackers from the records, in one thread per tracker that reads the records every few seconds.

Neither Tune's loop nor a trial ever waits for a tracker's disk or server. If a tracker or a driver fails, the missing
reports are sent later. To add a tracker, add a module and an entry in `TRACKERS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import threading
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.store.files import read_json
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.trainables.messages import one_line
from kdstudy.watch.trackers.base import Run, Tracker, digest, location_of
from kdstudy.watch.trackers.mlflow import MLflow
from kdstudy.watch.trackers.tensorboard import TensorBoard
from kdstudy.watch.trackers.wandb import WeightsAndBiases

EVERY = 5.0  # seconds between reads of the records
TRY_AGAIN = 60.0  # seconds after a failure
PATIENCE, IN_A_HURRY = 300.0, 20.0  # seconds to send the remaining reports when the driver finishes, or is stopped
GRACE = 5.0  # further seconds before a thread is abandoned
TRACKERS: tuple[type[Tracker], ...] = (TensorBoard, MLflow, WeightsAndBiases)


@contextlib.contextmanager
def watched(config: StudyConfig, storage: Storage, stages: Container[str],
            note: Callable[[str], None]) -> Iterator[None]:
    """Send new reports to all trackers in `[watch]` while the context is open.

    stages: the stages whose trials have curves. note: called with tracker errors, which do not affect the study.
    Raises UserError if a tracker's package or key is missing.
    """
    check(config)
    trackers = [tracker(config, storage) for tracker in TRACKERS if getattr(config.watch, tracker.setting)]
    feeds = [Feed(tracker, config, storage, stages, note) for tracker in trackers]
    for feed in feeds:
        feed.start()
    seconds = IN_A_HURRY
    try:
        yield
        seconds = PATIENCE
    finally:
        for feed in feeds:
            feed.finish(seconds)
        for feed in feeds:
            feed.wait()
        for tracker in trackers:
            if tracker.folder and (storage.folder / tracker.folder).is_dir():
                try:
                    storage.publish(storage.folder / tracker.folder)
                except StudyFailedError as error:
                    note(f"watch.{tracker.setting}: {one_line(error)}")


def check(config: StudyConfig) -> None:
    """Check that the packages of all trackers in `[watch]` are installed. Raises UserError."""
    for tracker in TRACKERS:
        value = getattr(config.watch, tracker.setting)
        if value and tracker.package and importlib.util.find_spec(tracker.package) is None:
            raise UserError(f"watch.{tracker.setting} = {value!r} needs a package that is not installed: "
                            f"pip install 'kdstudy[{tracker.package}]', or turn it off: --set watch.{tracker.setting}=")


class Feed(threading.Thread):
    """A thread that sends new reports to one tracker while the driver works."""

    def __init__(self, tracker: Tracker, config: StudyConfig, storage: Storage, stages: Container[str],
                 note: Callable[[str], None]):
        super().__init__(name=f"watch {tracker.setting}", daemon=True)
        self._ended, self._deadline = threading.Event(), math.inf
        self._setting, self._tracker, self._note = tracker.setting, tracker, note
        self._stages = stages
        self._study, self._location, self._folder = config.name, location_of(storage), storage.folder.absolute()
        self._records: dict[str, Record] = {}
        self._passed: dict[str, tuple[float, int, str]] = {}  # by run: last epoch, number of reports, state
        self._open, self._told, self._not_before = False, False, 0.0

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            if time.monotonic() >= self._not_before:
                self._try(self._update)
        self._try(self._update)
        self._try(lambda: self._tracker.close(max(0.0, self._deadline - time.monotonic())))

    def finish(self, seconds: float) -> None:
        """Send the remaining reports, for at most `seconds`."""
        self._deadline = time.monotonic() + seconds
        self._ended.set()

    def wait(self) -> None:
        self.join(max(0.0, self._deadline + GRACE - time.monotonic()))
        if self.is_alive():
            self._note(f"watch.{self._setting}: some reports were not sent; the next `kdstudy run` sends them")

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # servers and disks raise many types
            self._not_before = time.monotonic() + TRY_AGAIN
            if not self._told:
                self._told = True
                self._note(f"watch.{self._setting}: {one_line(error)}; the study goes on, and kdstudy tries again")

    def _update(self) -> None:
        self._open = self._open or self._tracker.open()
        if not self._open:
            return
        described = read_json(self._folder / "stages.json") or {"stages": {}}
        for stage, folder in described["stages"].items():
            if stage in self._stages:
                record = self._record(folder)
                for trial in record.trials.values():
                    self._pass_on(stage, folder, trial, record.session.get("rungs") or [])

    def _record(self, folder: str) -> Record:
        if folder not in self._records:
            self._records[folder] = Record(self._folder / folder / "record.jsonl", write=False)
        else:
            self._records[folder].catch_up()
        return self._records[folder]

    def _pass_on(self, stage: str, folder: str, trial: TrialState, rungs: list[int]) -> None:
        """Send what is new of a trial. After a failure, ask the tracker again what it already has."""
        name = f"{folder}/{trial.number:03d}"
        known, reports = self._passed.get(name), _certain(trial, rungs)
        if known and known[1:] == (len(reports), trial.state):
            return
        run = self._run(name, stage, trial)
        self._passed.pop(name, None)
        epoch = known[0] if known else self._tracker.begin(run, trial)
        # A failure report has no metrics, and disappears from the record when the trial is retried.
        new = [report for report in reports if report["epoch"] > epoch and report["decision"] != "failed"]
        if new:
            self._tracker.add(run, new)
            epoch = new[-1]["epoch"]
        if trial.state != "running" and epoch < math.inf:
            self._tracker.end(run, failed=trial.state == "failed")
        self._passed[name] = (epoch, len(reports), trial.state)

    def _run(self, name: str, stage: str, trial: TrialState) -> Run:
        config = {"stage": stage, "trial": trial.number, "origin": trial.origin, "seed": trial.seed,
                  **trial.parameters, **({"label": trial.label} if trial.label else {})}
        return Run(name, stage, trial.number, trial.begun, digest(self._location, name), f"{self._study} {stage}",
                   str(self._folder), config)


def _certain(trial: TrialState, rungs: list[int]) -> list[dict[str, Any]]:
    """The reports of a trial that will count. If it is stopped at a rung that still waits for other trials, what it did
    after that rung does not, and a tracker takes nothing back."""
    if trial.state != "running" or trial.start is None or trial.retried_from is not None:
        return trial.reports
    waits_at = next((rung for rung in rungs if rung > trial.decided), None)
    return trial.reports if waits_at is None else [report for report in trial.reports if report["epoch"] <= waits_at]
