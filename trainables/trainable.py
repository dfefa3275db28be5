"""The Ray Tune class Trainable that the teacher, baseline and distillation loops share."""

import math
import tempfile
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from kdstudy.trainables.credentials import redact
from kdstudy.trainables.loop import Training
from kdstudy.trainables.task import Task, release_memory, save


class NotSavedError(Exception):
    """A checkpoint could not be written to where the study lives, which is no fault of the trial's."""


class StudyTrainable(tune.Trainable):
    """Runs one Training. Subclasses say how it starts.

    The trial's config holds: number (ours, not Tune's), parameters, seed, view_seed, checkpoint (a folder or URI to
    continue from, or None). Each step trains `task.report_every` epochs and reports them. A step never raises for what
    the training itself does wrong: it reports `failure`, one line, and the driver ends the trial. So Tune's retries
    remain for workers that die.
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
        """Remember what went wrong, unless it has broken the device for this process: then Tune replaces the worker."""
        if "CUDA error" in str(error):
            raise error
        self.failure = describe(error)

    def start(self, config: dict) -> Training:
        raise NotImplementedError

    def step(self) -> dict:
        if self.failure is None:
            try:
                report = self.training.run(self.task.report_every)
                due = is_checkpoint_due(self.training, self.task)
                return report | {"failure": not_finite(report), SHOULD_CHECKPOINT: due}
            except Exception as error:
                self._note(error)
        return {"epoch": self.training.epoch if self.training else 0, "failure": self.failure}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self.training is not None:
            self.write(Path(checkpoint_dir))

    def write(self, folder: Path) -> None:
        save(self.training, self.task, folder)

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """What Tune calls: save, and bring that to where the study lives. Raises NotSavedError."""
        try:
            return super().save(checkpoint_dir)
        except Exception as error:  # file systems, safetensors and clients of object stores have kinds of their own
            if "CUDA error" in str(error):
                raise
            raise NotSavedError(describe(error)) from None

    def load_checkpoint(self, checkpoint: str) -> None:
        self._begin(self.config, checkpoint)

    def cleanup(self) -> None:
        self.training = None
        release_memory()


def continue_from(training: Training, checkpoint: str) -> bool:
    """Load a checkpoint, a folder or a URI; False where it is damaged: then the trial begins anew, which costs time,
    not results."""
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
    """Whether the state after the epoch that has just been reported is to be saved."""
    if training.finished:
        return task.keep_weights
    return bool(task.checkpoint_every) and training.epoch % task.checkpoint_every < task.report_every


def not_finite(report: dict) -> str | None:
    """Name the first loss that is not a finite number; None where all is well."""
    for name in ("train_loss", "validation_loss"):
        if not math.isfinite(report.get(name, 0.0)):
            return f"{name} is {report[name]} at epoch {report['epoch']}"
    return None


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(redact(str(error)).split())}"[:300]
