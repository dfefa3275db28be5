"""A study's curves where others are watched: TensorBoard's event files, MLflow, Weights & Biases.

All are fed from the records, by a thread each, which looks at them every few seconds. So neither Tune's loop nor a
trial ever waits for a disk or a server of theirs, one that fails is told again what it has missed, and what a driver
that was killed has not passed on any more, the next one does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import threading
import time
from collections.abc import Callable, Iterator

from kdstudy.config.settings import StudyConfig
from kdstudy.errors import StudyFailedError, UserError
from kdstudy.store.files import read_json
from kdstudy.store.record import Record, TrialState
from kdstudy.store.storage import Storage
from kdstudy.trainables.messages import one_line
from kdstudy.watch.trackers.base import Run, Sink, _digest
from kdstudy.watch.trackers.mlflow import MLflow
from kdstudy.watch.trackers.tensorboard import TensorBoard
from kdstudy.watch.trackers.wandb import WeightsAndBiases

EVERY = 5.0  # seconds between two looks at the records
TRY_AGAIN = 60.0  # seconds after a failure
PATIENCE, IN_A_HURRY = 300.0, 20.0  # seconds for what is left to pass on when the driver is done, or stopped
TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders in the study's
GRACE = 5.0  # seconds after that before a feed is left to itself
UNWATCHED = ("teacher_logits",)  # its trials are pieces of answers, without a curve
PACKAGES = ("mlflow", "wandb")  # settings that need a package of their name, and the extras that bring it


@contextlib.contextmanager
def watched(config: StudyConfig, storage: Storage, note: Callable[[str], None]) -> Iterator[None]:
    """Pass on what happens meanwhile to whatever `[watch]` names. `note` tells the user what goes wrong with that,
    which is no harm to the study. Raises UserError where something is missing here that they need."""
    feeds = [Feed(setting, sink, config, storage, note) for setting, sink in _sinks(config, storage).items()]
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
        if config.watch.tensorboard and (storage.folder / TENSORBOARD).is_dir():
            try:
                storage.publish(storage.folder / TENSORBOARD)
            except StudyFailedError as error:
                note(f"watch.tensorboard: {one_line(error)}")


def check(config: StudyConfig) -> None:
    """See whether the packages are there that `[watch]` needs. Raises UserError."""
    for name in PACKAGES:
        value = getattr(config.watch, name)
        if value and importlib.util.find_spec(name) is None:
            raise UserError(f"watch.{name} = {value!r} needs a package that is not installed: "
                            f"pip install 'kdstudy[{name}]', or do without: --set watch.{name}=")


def _sinks(config: StudyConfig, storage: Storage) -> dict[str, Sink]:
    check(config)
    sinks: dict[str, Sink] = {}
    if config.watch.tensorboard:
        sinks["tensorboard"] = TensorBoard(storage.folder / TENSORBOARD, config.default_parameters("distill"))
    if config.watch.mlflow:
        sinks["mlflow"] = MLflow(config.watch.mlflow, config.name, _place(storage))
    if config.watch.wandb:
        sinks["wandb"] = WeightsAndBiases(config.watch.wandb)
    return sinks


def _place(storage: Storage) -> str:
    return storage.uri or str(storage.folder.resolve())


class Feed(threading.Thread):
    """Passes on to one sink what the records tell, as long as its driver works."""

    def __init__(self, setting: str, sink: Sink, config: StudyConfig, storage: Storage, note: Callable[[str], None]):
        super().__init__(name=f"watch {setting}", daemon=True)
        self._ended, self._deadline = threading.Event(), math.inf
        self._setting, self._sink, self._note = setting, sink, note
        self._study, self._place, self._folder = config.name, _place(storage), storage.folder.absolute()
        self._records: dict[str, Record] = {}
        self._passed: dict[str, tuple[float, int, str]] = {}  # by run: the last epoch, reports seen, the state then
        self._open, self._told, self._not_before = False, False, 0.0

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            if time.monotonic() >= self._not_before:
                self._try(self._look)
        self._try(self._look)
        self._try(lambda: self._sink.close(max(0.0, self._deadline - time.monotonic())))

    def finish(self, seconds: float) -> None:
        """Pass on what is left, for so long."""
        self._deadline = time.monotonic() + seconds
        self._ended.set()

    def wait(self) -> None:
        self.join(max(0.0, self._deadline + GRACE - time.monotonic()))
        if self.is_alive():
            self._note(f"watch.{self._setting}: not all has been passed on; the next `kdstudy run` does that")

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # of as many kinds as there are servers and disks
            self._not_before = time.monotonic() + TRY_AGAIN
            if not self._told:
                self._told = True
                self._note(f"watch.{self._setting}: {one_line(error)}; the study goes on, and this is tried again")

    def _look(self) -> None:
        self._open = self._open or self._sink.open()
        if not self._open:
            return
        described = read_json(self._folder / "stages.json") or {"stages": {}}
        for stage, folder in described["stages"].items():
            if stage not in UNWATCHED:
                for trial in self._record(folder).trials.values():
                    self._pass_on(stage, folder, trial)

    def _record(self, folder: str) -> Record:
        if folder not in self._records:
            self._records[folder] = Record(self._folder / folder / "record.jsonl", write=False)
        else:
            self._records[folder].catch_up()
        return self._records[folder]

    def _pass_on(self, stage: str, folder: str, trial: TrialState) -> None:
        """Whatever of a trial is new. After a failure the sink is asked again what it has."""
        name = f"{folder}/{trial.number:03d}"
        known = self._passed.get(name)
        if known and known[1:] == (len(trial.reports), trial.state):
            return
        run = self._run(name, stage, trial)
        self._passed.pop(name, None)
        epoch = known[0] if known else self._sink.begin(run, trial)
        # A report of a failure has no values, and is gone once the trial is tried again.
        new = [report for report in trial.reports if report["epoch"] > epoch and report["decision"] != "failed"]
        if new:
            self._sink.add(run, new)
            epoch = new[-1]["epoch"]
        if trial.state != "running" and epoch < math.inf:
            self._sink.end(run, failed=trial.state == "failed")
        self._passed[name] = (epoch, len(trial.reports), trial.state)

    def _run(self, name: str, stage: str, trial: TrialState) -> Run:
        config = {"stage": stage, "trial": trial.number, "origin": trial.origin, "seed": trial.seed,
                  **trial.parameters, **({"label": trial.label} if trial.label else {})}
        return Run(name, stage, trial.number, trial.begun, _digest(self._place, name), f"{self._study} {stage}",
                   str(self._folder), config)
