"""The Ray Tune trainable that all loops share."""

import math
import socket
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import ray
from fsspec.implementations.local import LocalFileSystem
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from kdstudy.trainables.credentials import redact
from kdstudy.trainables.device import release_memory
from kdstudy.trainables.loop import Training
from kdstudy.trainables.task import Task, on_test, save


class NotSavedError(Exception):
    """A checkpoint could not be written to the study's storage. The trial itself did not fail."""


class StudyTrainable(tune.Trainable):
    """Runs one Training. A subclass implements `start`.

    The trial's config holds: number (the study's, not Tune's), parameters, seed, view_seed, and checkpoint (a folder or
    URI to continue from, or None). Each step trains `task.report_every` epochs and reports them. A step does not raise
    if the training fails: it reports `failure`, one line, and the driver ends the trial. Tune's retries thus remain for
    workers that die.
    """

    def setup(self, config: dict, task: Task) -> None:
        self.task = task
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self._begin(new_config, new_config.get("checkpoint"))
        return True

    def _begin(self, config: dict, checkpoint: str | None) -> None:
        self.training: Training | None = None
        self.failure: str | None = None
        release_memory()
        try:
            self.training = self.start(config)
            if checkpoint and not continue_from(self.training, checkpoint):
                self.training = self.start(config)
        except Exception as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Remember an error as the trial's failure. CUDA errors are raised instead: they leave the device unusable for
        this process, and Tune then replaces the worker."""
        if "CUDA error" in str(error):
            raise error
        self.failure = describe(error)

    def start(self, config: dict) -> Training:
        """The run that the config describes, at its first epoch."""
        raise NotImplementedError

    def step(self) -> dict:
        if self.failure is None:
            try:
                report = self.training.run(self.task.report_every)
                report |= on_test(self.training, self.task)
                due = is_checkpoint_due(self.training, self.task)
                return report | {"failure": not_finite(report), SHOULD_CHECKPOINT: due}
            except Exception as error:
                self._note(error)
        return {"epoch": self.training.epoch if self.training else 0, "failure": self.failure}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self.training is not None:
            self.write(Path(checkpoint_dir))

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint."""
        save(self.training, self.task, folder)

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Tune calls this to save a checkpoint and copy it to the study's storage. Raises NotSavedError."""
        try:
            return super().save(checkpoint_dir)
        except Exception as error:  # file systems, safetensors and object store clients raise many types
            if "CUDA error" in str(error):
                raise
            raise NotSavedError(describe(error)) from None

    def load_checkpoint(self, checkpoint: str) -> None:
        self._begin(self.config, checkpoint)

    def cleanup(self) -> None:
        self.training = None
        release_memory()


def continue_from(training: Training, checkpoint: str) -> bool:
    """Load a checkpoint from a folder or URI. Returns False if it is damaged: starting anew then costs time, but does
    not change results."""
    try:
        with tempfile.TemporaryDirectory() as copy:
            files, path = fsspec.core.url_to_fs(checkpoint)
            if not isinstance(files, LocalFileSystem):
                files.get(f"{path}/", f"{copy}/", recursive=True)
                path = copy
            training.load(Path(path))
    except Exception:
        return False
    return True


def is_checkpoint_due(training: Training, task: Task) -> bool:
    """Whether to save the state after the epoch that has just been reported."""
    if training.finished:
        return task.keep_weights
    return bool(task.checkpoint_every) and training.epoch % task.checkpoint_every < task.report_every


def not_finite(report: dict) -> str | None:
    """One line that names the first loss in a report that is not finite; None if all are."""
    for name in ("train_loss", "validation_loss"):
        if not math.isfinite(report.get(name, 0.0)):
            return f"{name} is {report[name]} at epoch {report['epoch']}"
    return None


def describe(error: Exception) -> str:
    """An error in one line of at most 300 characters, without secrets."""
    return f"{type(error).__name__}: {' '.join(redact(str(error)).split())}"[:300]


def where_it_runs() -> str:
    """This worker's host, Ray node and GPUs, such as "host 1a2b3c4d gpu 0,1". A host may run several Ray nodes."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return " ".join([socket.gethostname(), context.get_node_id()[:8], *(["gpu " + ",".join(gpus)] if gpus else [])])
