"""The teacher's logits, and its features, in pieces. Each piece is a trial of its own, so all workers share the
computation, and a piece is retried like any trial if its worker dies."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kdstudy.trainables.device import default_device, to_device
from kdstudy.trainables.files import (
    CHECKPOINT_MARK,
    TEST_PREDICTIONS,
    UNLABELLED_FEATURES,
    UNLABELLED_LOGITS,
    VALIDATION_PREDICTIONS,
    VIEW_FEATURES,
    VIEW_LOGITS,
)
from kdstudy.trainables.predictions import plain_logits, write_logits
from kdstudy.trainables.task import Task
from kdstudy.trainables.teacher_logits import MakeViews, compute, compute_with_features, held_out
from kdstudy.trainables.trainable import StudyTrainable


class LogitsPiece:
    """A piece: the teacher's logits for `view_count` views from `first_view` on, or, if that is 0, its predictions for
    the validation and test images. It behaves like a Training of one epoch.

    Its files: views.npy and unlabelled.npy, (V, N, C) fp16 or packed by `top_k`, and where the task wants features,
    features.npy and unlabelled-features.npy, (V, N, D) fp16; or validation.npy, (N,) int64, and test.parquet.
    """

    def __init__(self, task: Task, first_view: int, view_count: int, view_seed: int):
        self.task, self.views, self.view_seed = task, range(first_view, first_view + view_count), view_seed
        self.epoch = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._test_logits: torch.Tensor | None = None  # (N, C) fp32

    @property
    def finished(self) -> bool:
        return self.epoch > 0

    def run(self, epochs: int) -> dict[str, float]:
        """Compute the piece. Returns epoch, seconds and images_per_second. epochs: is ignored."""
        started = time.perf_counter()
        torch.set_num_threads(self.task.threads)
        images = self._compute_views() if self.views else self._compute_held_out()
        self.epoch = 1
        seconds = time.perf_counter() - started
        return {"epoch": 1, "seconds": seconds, "images_per_second": images / seconds}

    def _compute_views(self) -> int:
        """Returns how many images were computed, each view counted."""
        device = default_device()
        teacher = self.task.load_teacher(device)

        def add(make_views: Callable[..., MakeViews], logits: str, features: str) -> int:
            views = partial(make_views, view_seed=self.view_seed, device=device, for_logits=True)
            keep = self.task.views.kept_logits(self.task.classes)
            if self.task.wants_features:
                self._arrays[logits], self._arrays[features] = compute_with_features(
                    teacher, views, only=self.views, keep=keep)
            else:
                self._arrays[logits] = compute(teacher, views, only=self.views, keep=keep)
            return math.prod(self._arrays[logits].shape[:2])

        computed = add(self.task.make_views, VIEW_LOGITS, VIEW_FEATURES)
        if self.task.unlabelled is not None:
            computed += add(self.task.make_unlabelled_views, UNLABELLED_LOGITS, UNLABELLED_FEATURES)
        return computed

    def _compute_held_out(self) -> int:
        """Returns how many images were computed."""
        task, device = self.task, default_device()
        teacher = task.load_teacher(device)
        validation = held_out(teacher, *to_device(task.validation, device))
        self._arrays[VALIDATION_PREDICTIONS] = validation.argmax(1).cpu().numpy()
        self._test_logits = torch.stack([plain_logits(member.model, task.test) for member in teacher]).mean(0)
        return len(task.validation) + len(task.test)

    def save(self, folder: Path) -> None:
        """Write the piece's files, the mark last."""
        for name, array in self._arrays.items():
            np.save(folder / name, array, allow_pickle=False)
        if self._test_logits is not None:
            write_logits(self._test_logits, self.task.test.labels, folder / TEST_PREDICTIONS)
        (folder / CHECKPOINT_MARK).touch()

    def load(self, folder: Path) -> None:
        """Raises ValueError: a piece has no state to continue from."""
        raise ValueError("a piece of the teacher's logits is computed anew")


class TeacherLogitsTrainable(StudyTrainable):
    """Computes a piece of the teacher's logits. Its parameters: first_view and view_count; 0 views stand for the
    validation and test images."""

    def start(self, config: dict) -> LogitsPiece:
        return LogitsPiece(self.task, **config["parameters"], view_seed=config["view_seed"])

    def write(self, folder: Path) -> None:
        self.training.save(folder)
