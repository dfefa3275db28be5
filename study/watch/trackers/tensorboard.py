"""The TensorBoard tracker."""

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
    """Appends to one event file per trial, folder/STAGE/trial-NNN: a first event, the hyperparameters, and an event
    per report, whose step is the epoch. A half-written event of a killed driver is truncated.

    Uses only the event format of tensorboardX, which comes with Ray Tune: its own writer keeps a file, a queue and a
    thread open per trial, and starts a new file whenever a trial resumes.
    """

    setting = folder = "tensorboard"
    package = None

    def __init__(self, config: StudyConfig, storage: Storage):
        # Here, in the main thread, because these import torch.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        self._folder, self._parameters = storage.folder / self.folder, config.default_values("distill")
        self._event, self._checksum = Event, masked_crc32c
        self._seen: set[str] = set()  # stage folders

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
        """Delete event files that the same stage wrote with other settings."""
        for path in (self._folder / stage).glob("trial-*/events.*"):
            if path.suffix != suffix:
                remove(path, self._folder)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

    def _described(self, run: Run) -> list[Any]:
        """Return the events for TensorBoard's HPARAMS tab: all hyperparameters, and this run's values.

        TensorBoard takes the list of hyperparameters from the first run that it loads, so it covers both arms."""
        from tensorboardX.summary import hparams

        experiment, _, _ = hparams(self._parameters | run.config, {METRIC: 0.0})
        _, start, _ = hparams(run.config, {METRIC: 0.0})
        return [self._event(wall_time=run.begun, summary=summary) for summary in (experiment, start)]

    def _append(self, run: Run, events: list[Any]) -> None:
        framed = b"".join(self._framed(event.SerializeToString()) for event in events)
        with open(self._path(run), "ab") as file:
            file.write(framed)

    def _framed(self, content: bytes) -> bytes:
        """Return a TFRecord: length, checksum of the length, content, checksum of the content."""
        length = struct.pack("<Q", len(content))
        return b"".join((length, struct.pack("<I", self._checksum(length)), content,
                         struct.pack("<I", self._checksum(content))))

    def _whole_events(self, path: Path) -> list[Any]:
        """Return the events of a file, and truncate the file after the last complete one."""
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
