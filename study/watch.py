"""A study's curves where others are watched: TensorBoard's event files, MLflow, Weights & Biases.

All are fed from the records, by a thread each, which looks at them every few seconds. So neither Tune's loop nor a
trial ever waits for a disk or a server of theirs, one that fails is told again what it has missed, and what a driver
that was killed has not passed on any more, the next one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from study.config import StudyConfig
from study.errors import StudyFailedError, UserError
from study.home import Home
from study.record import METRIC, Record, TrialState
from study.storage import read_json
from trainables.messages import one_line
from trainables.paths import remove

EVERY = 5.0  # seconds between two looks at the records
TRY_AGAIN = 60.0  # seconds after a failure
PATIENCE, IN_A_HURRY = 300.0, 20.0  # seconds for what is left to pass on when the driver is done, or stopped
TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders in the study's
GRACE = 5.0  # seconds after that before a feed is left to itself
MOST_VALUES = 900  # that MLflow takes at a time
UNWATCHED = ("teacher_logits",)  # its trials are pieces of answers, without a curve
PACKAGES = ("mlflow", "wandb")  # settings that need a package of their name, and the extras that bring it


@dataclass(frozen=True)
class Run:
    """A trial as it is watched. To Ray's callbacks it is what they ask of a trial of Tune's; they know it by its name.

    local_path: where W&B writes. config: its parameters and what tells it apart, flat.
    """

    name: str  # the stage's folder and the trial's number
    stage: str = field(compare=False)
    number: int = field(compare=False)
    begun: float = field(compare=False)
    trial_id: str = field(compare=False)  # the same for every driver
    experiment_dir_name: str = field(compare=False)  # W&B groups by it
    local_path: str = field(compare=False)
    config: dict[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return self.name


class Sink(Protocol):
    """Where curves go. What it raises is told to the user once, and tried again later."""

    def open(self) -> bool:
        """Make ready; False where it is too early for that."""

    def begin(self, run: Run, trial: TrialState) -> float:
        """Take up a run; the epoch up to which it is there already."""

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        """Take reports, in their order."""

    def end(self, run: Run, failed: bool) -> None:
        """A run has ended."""

    def close(self, seconds: float) -> None:
        """Nothing comes any more; so long there is to bring to an end what is under way."""


@contextlib.contextmanager
def watched(config: StudyConfig, home: Home, note: Callable[[str], None]) -> Iterator[None]:
    """Pass on what happens meanwhile to whatever `[watch]` names. `note` tells the user what goes wrong with that,
    which is no harm to the study. Raises UserError where something is missing here that they need."""
    feeds = [Feed(setting, sink, config, home, note) for setting, sink in _sinks(config, home).items()]
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
        if config.watch.tensorboard and (home.folder / TENSORBOARD).is_dir():
            try:
                home.publish(home.folder / TENSORBOARD)
            except StudyFailedError as error:
                note(f"watch.tensorboard: {one_line(error)}")


def check(config: StudyConfig) -> None:
    """See whether the packages are there that `[watch]` needs. Raises UserError."""
    for name in PACKAGES:
        value = getattr(config.watch, name)
        if value and importlib.util.find_spec(name) is None:
            raise UserError(f"watch.{name} = {value!r} needs a package that is not installed: "
                            f"pip install 'kdstudy[{name}]', or do without: --set watch.{name}=")


def _sinks(config: StudyConfig, home: Home) -> dict[str, Sink]:
    check(config)
    sinks: dict[str, Sink] = {}
    if config.watch.tensorboard:
        sinks["tensorboard"] = TensorBoard(home.folder / TENSORBOARD, config.default_parameters("distill"))
    if config.watch.mlflow:
        sinks["mlflow"] = MLflow(config.watch.mlflow, config.name, _place(home))
    if config.watch.wandb:
        sinks["wandb"] = WeightsAndBiases(config.watch.wandb)
    return sinks


def _place(home: Home) -> str:
    return home.uri or str(home.folder.resolve())


class Feed(threading.Thread):
    """Passes on to one sink what the records tell, as long as its driver works."""

    def __init__(self, setting: str, sink: Sink, config: StudyConfig, home: Home, note: Callable[[str], None]):
        super().__init__(name=f"watch {setting}", daemon=True)
        self._ended, self._deadline = threading.Event(), math.inf
        self._setting, self._sink, self._note = setting, sink, note
        self._study, self._place, self._folder = config.name, _place(home), home.folder.absolute()
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


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def values_of(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report by their names."""
    return {name: float(value) for name, value in report["metrics"].items() if isinstance(value, int | float)}


# ---------------------------------------------------------------------------------------------------------------------
# TensorBoard


class TensorBoard:
    """An event file per trial, folder/STAGE/trial-NNN, to which is only appended: a first event, the hyperparameters,
    an event per report, whose step is the epoch. What a driver that was killed left half written is cut off.

    By tensorboardX, which comes with Ray Tune; its own writer keeps a file, a queue and a thread open for every trial,
    and starts a new file whenever a trial goes on.
    """

    def __init__(self, folder: Path, parameters: dict[str, Any]):
        # Here, in the main thread: they import torch.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        self._folder, self._parameters = folder, parameters
        self._event, self._checksum = Event, masked_crc32c
        self._seen: set[str] = set()  # folders of stages

    def open(self) -> bool:
        return True

    def begin(self, run: Run, trial: TrialState) -> float:
        path = self._path(run)
        if path.suffix not in self._seen:
            self._seen.add(path.suffix)
            self._remove_others(run.stage, path.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        events = self._whole_events(path)
        if not events:
            self._append(run, [self._event(wall_time=run.begun, file_version="brain.Event:2"), *self._described(run)])
        return max((event.step for event in events), default=0)

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        events = []
        for report in reports:
            event = self._event(wall_time=report["time"], step=report["epoch"])
            for name, value in values_of(report).items():
                event.summary.value.add(tag=name, simple_value=value)
            events.append(event)
        self._append(run, events)

    def end(self, run: Run, failed: bool) -> None:
        pass

    def close(self, seconds: float) -> None:
        pass

    def _path(self, run: Run) -> Path:
        stage = run.name.split("/")[0]
        return self._folder / run.stage / f"trial-{run.number:03d}" / f"events.out.tfevents.{int(run.begun)}.{stage}"

    def _remove_others(self, stage: str, suffix: str) -> None:
        """What the stage ran with other settings is no part of this study."""
        for path in (self._folder / stage).glob("trial-*/events.*"):
            if path.suffix != suffix:
                remove(path, self._folder)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    def _described(self, run: Run) -> list[Any]:
        """What TensorBoard's HPARAMS tab asks for: all hyperparameters that there are, and this run's. It takes the
        first from whichever run it meets first, so they are those of all arms."""
        from tensorboardX.summary import hparams

        experiment, _, _ = hparams(self._parameters | run.config, {METRIC: 0.0})
        _, start, _ = hparams(run.config, {METRIC: 0.0})
        return [self._event(wall_time=run.begun, summary=summary) for summary in (experiment, start)]

    def _append(self, run: Run, events: list[Any]) -> None:
        framed = b"".join(self._framed(event.SerializeToString()) for event in events)
        with open(self._path(run), "ab") as file:
            file.write(framed)

    def _framed(self, content: bytes) -> bytes:
        """A TFRecord: length, its checksum, content, its checksum."""
        length = struct.pack("<Q", len(content))
        return b"".join((length, struct.pack("<I", self._checksum(length)), content,
                         struct.pack("<I", self._checksum(content))))

    def _whole_events(self, path: Path) -> list[Any]:
        """The events of a file; what comes after the last whole one is cut off."""
        events, at = [], 0
        content = path.read_bytes() if path.exists() else b""
        while at + 16 <= len(content):
            end = at + 16 + struct.unpack_from("<Q", content, at)[0]
            if end > len(content):
                break
            events.append(self._event.FromString(content[at + 12: end - 4]))
            at = end
        if at < len(content):
            os.truncate(path, at)
        return events


# ---------------------------------------------------------------------------------------------------------------------
# MLflow


class MLflow:
    """A run per trial, by Ray's MLflowLoggerCallback; a run that is there already is gone on with.

    Its own way to log a report asks the server twice for every value, so that is done here for all of them at once,
    with the time of the report. where: a URI; or a folder, which gets a mlflow.db, for MLflow no longer writes plain
    files. place: where the study lives, which tells its runs from those of others.
    """

    def __init__(self, where: str, experiment: str, place: str):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow  # noqa: F401  it sets up its logging
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._uri, self._study = where, _digest(place)
        if "://" not in where and not where.startswith("databricks"):
            folder = Path(os.path.expanduser(where)).absolute()
            with _made(folder, "watch.mlflow"):
                folder.mkdir(parents=True, exist_ok=True)
            self._uri = f"sqlite:///{folder}/mlflow.db"
        self._callback = MLflowLoggerCallback(tracking_uri=self._uri, experiment_name=experiment,
                                              tags={"study": place, "study.id": self._study})
        self._runs: dict[str, Any] = {}  # of this study, by name, as they were at the beginning

    def open(self) -> bool:
        from mlflow import MlflowClient

        self._callback.setup()
        self._client = MlflowClient(tracking_uri=self._uri)
        token = None
        while token != "":
            page = self._client.search_runs([self._callback.mlflow_util.experiment_id], page_token=token,
                                            filter_string=f"tags.`study.id` = '{self._study}'")
            self._runs |= {run.data.tags["trial_name"]: run for run in page}
            token = page.token or ""
        return True

    def begin(self, run: Run, trial: TrialState) -> float:
        known = self._runs.pop(run.name, None)
        if known is None and run in self._callback._trial_runs:  # begun here, before a failure
            known = self._client.get_run(self._callback._trial_runs[run])
        if known is not None:
            self._callback._trial_runs[run] = known.info.run_id
        if known is None or not known.data.params:
            self._callback.log_trial_start(run)
        return known.data.metrics.get("epoch", 0) if known else 0

    def add(self, run: Run, reports: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        values = [Metric(name, value, int(1000 * report["time"]), report["epoch"]) for report in reports
                  for name, value in (values_of(report) | {"epoch": report["epoch"]}).items()]
        for start in range(0, len(values), MOST_VALUES):
            self._client.log_batch(self._callback._trial_runs[run], metrics=values[start: start + MOST_VALUES])

    def end(self, run: Run, failed: bool) -> None:
        self._callback.log_trial_end(run, failed)

    def close(self, seconds: float) -> None:
        pass


@contextlib.contextmanager
def _made(folder: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{setting}: {folder} cannot be made: {error.strerror}; choose another folder") from None


# ---------------------------------------------------------------------------------------------------------------------
# Weights & Biases


class WeightsAndBiases:
    """A run per trial, by Ray's WandbLoggerCallback, whose processes run beside the driver. A trial that goes on does
    so in the same run; what had ended before this driver began is not sent again."""

    def __init__(self, project: str):
        from ray.air.integrations.wandb import WandbLoggerCallback

        mode = os.environ.get("WANDB_MODE")
        self._callback = WandbLoggerCallback(project=project, resume="allow",
                                             **({"mode": mode} if mode else {}))
        self._since, self._running = time.time(), set[Run]()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it warns of what Ray calls
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
            # What its on_experiment_end does, which knows one patience only.
            self._callback._cleanup_logging_actors(timeout=seconds, kill_on_timeout=True)
