"""The teacher's answers in pieces, each a trial of its own: so they are spread over all workers, and survive what
trials survive."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kdstudy.trainables.files import CHECKPOINT_MARK, TEST_ANSWERS, UNLABELLED, VALIDATION, VIEWS
from kdstudy.trainables.loop import default_device, to_device
from kdstudy.trainables.task import Task, plain_logits, write_answers
from kdstudy.trainables.teacher_logits import MakeViews, compute, held_out
from kdstudy.trainables.trainable import StudyTrainable


class Answering:
    """A piece: the teacher's logits for some views of one view seed or, of no views, what it says of the validation and
    the test images. One epoch long.

    Its files: views.npy and unlabelled.npy, (V, N, C) fp16; or validation.npy, (N,) int64, and test.parquet.
    """

    def __init__(self, task: Task, first_view: int, view_count: int, view_seed: int):
        self.task, self.views, self.view_seed = task, range(first_view, first_view + view_count), view_seed
        self.epoch = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._test: torch.Tensor | None = None  # logits (N, C)

    @property
    def finished(self) -> bool:
        return self.epoch > 0

    def run(self, epochs: int) -> dict[str, float]:
        started = time.perf_counter()
        torch.set_num_threads(self.task.threads)
        answered = self._answer_views() if self.views else self._answer_held_out()
        self.epoch = 1
        seconds = time.perf_counter() - started
        return {"epoch": 1, "seconds": seconds, "images_per_second": answered / seconds}

    def _answer_views(self) -> int:
        device = default_device()
        teacher = self.task.load_teacher(device)

        def answers(make_views: Callable[..., MakeViews]) -> np.ndarray:
            return compute(teacher, partial(make_views, view_seed=self.view_seed, device=device), only=self.views)

        self._arrays[VIEWS] = answers(self.task.make_views)
        if self.task.unlabelled is not None:
            self._arrays[UNLABELLED] = answers(self.task.make_unlabelled_views)
        return sum(array.shape[0] * array.shape[1] for array in self._arrays.values())

    def _answer_held_out(self) -> int:
        task, device = self.task, default_device()
        teacher = task.load_teacher(device)
        self._arrays[VALIDATION] = held_out(teacher, *to_device(task.validation, device)).argmax(1).cpu().numpy()
        self._test = torch.stack([plain_logits(member.model, task.test) for member in teacher]).mean(0)
        return len(task.validation) + len(task.test)

    def save(self, folder: Path) -> None:
        for name, array in self._arrays.items():
            np.save(folder / name, array, allow_pickle=False)
        if self._test is not None:
            write_answers(self._test, self.task.test.labels, folder / TEST_ANSWERS)
        (folder / CHECKPOINT_MARK).touch()

    def load(self, folder: Path) -> None:
        raise ValueError("a piece of a teacher's answers begins anew")


class TeacherLogitsTrainable(StudyTrainable):
    """Answers for the teacher. Its parameters: first_view, view_count; 0 views are the held-out images."""

    def start(self, config: dict) -> Answering:
        return Answering(self.task, **config["parameters"], view_seed=config["view_seed"])

    def write(self, folder: Path) -> None:
        self.training.save(folder)
