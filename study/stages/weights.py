"""What the stages share whose result is the weights of one run: a trained teacher, and the student as its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kdstudy.errors import StudyFailedError
from kdstudy.stages.base import StageFolder
from kdstudy.stages.context import Context
from kdstudy.store import files
from kdstudy.store.record import TrialState
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.paths import inside, remove


def weights_check(context: Context, folder: StageFolder) -> Callable[[TrialState], bool]:
    """Return a check that a run's weights exist, or those of the chosen run, after which the others are deleted."""
    def has_weights(trial: TrialState) -> bool:
        return any((path / WEIGHTS).exists() for path in (folder.path, context.folder / trial.checkpoint["path"]))

    return has_weights


def keep_weights(context: Context, folder: StageFolder, run: TrialState) -> Path:
    """Copy a run's weights to the stage's folder, unless they are there, and delete the runs. Returns their path."""
    weights = folder.path / WEIGHTS
    if not weights.exists():
        files.copy_file(inside(context.folder, run.checkpoint["path"]) / WEIGHTS, weights)
    remove(folder.path / "runs", folder.path, if_possible=True)
    return weights


def read_checked(path: Path, check: Callable[[dict[str, np.ndarray]], None]) -> dict[str, np.ndarray]:
    """Return the weights in a file. check: raises ValueError if they do not suit.

    Raises StudyFailedError if the file is damaged or its weights do not suit."""
    weights = files.read_weights(path)
    try:
        check(weights)
    except ValueError as error:
        raise StudyFailedError(f"{path}: {error}; restore it from a copy") from None
    return weights


def count_parameters(weights: dict[str, np.ndarray]) -> int:
    """Return the number of trainable parameters among a model's weights: all but normalisation statistics."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(array.size for name, array in weights.items() if name.rsplit(".", 1)[-1] not in buffers)
