"""TensorBoard."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any

from kdstudy.config.settings import StudyConfig
from kdstudy.store.record import METRIC, TrialState
from kdstudy.store.storage import Storage
from kdstudy.trainables.paths import remove
from kdstudy.watch.trackers.base import Run, values_of


class TensorBoard:
    """An event file per trial, folder/STAGE/trial-NNN, to which is only appended: a first event, the hyperparameters,
    an event per report, whose step is the epoch. What a driver that was killed left half written is cut off.

    By tensorboardX, which comes with Ray Tune; its own writer keeps a file, a queue and a thread open for every trial,
    and starts a new file whenever a trial goes on.
    """

    setting = folder = "tensorboard"
    package = None

    def __init__(self, config: StudyConfig, storage: Storage):
        # Here, in the main thread: they import torch.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        self._folder, self._parameters = storage.folder / self.folder, config.default_parameters("distill")
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
