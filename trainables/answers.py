"""The teacher's answers in pieces, each a trial of its own: so they are spread over all workers, and survive what
trials survive."""

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trainables.files import CHECKPOINT_MARK, TEST_ANSWERS, UNLABELLED, VALIDATION, VIEWS
from trainables.loop import default_device, to_device
from trainables.task import Task, plain_logits, write_answers
from trainables.teacher_logits import MakeViews, compute, held_out
from trainables.trainable import StudyTrainable


class Answering:
    """A piece: the teacher's logits for some views of one view seed or, of no views, what it says of the validation and
    the test images. One epoch long.

    Its files: views.npy and unlabelled.npy, (V, N, C) fp16; or validation.npy, (N,) int64, and test.parquet.
    """

    def __init__(self, task: Task, first_view: int, view_count: int, view_seed: int):
        self.task, self.views, self.view_seed = task, range(first_view, first_view + view_count), view_seed
        self.epoch, self.finished = 0, False
        self._files: dict[str, Callable[[Path], None]] = {}

    def run(self, epochs: int) -> dict[str, float]:
        started = time.perf_counter()
        torch.set_num_threads(self.task.threads)
        answered = self._answer_views() if self.views else self._answer_held_out()
        self.epoch, self.finished = 1, True
        seconds = time.perf_counter() - started
        return {"epoch": 1, "seconds": seconds, "images_per_second": answered / seconds}

    def _answer_views(self) -> int:
        device = default_device()
        teacher = self.task.load_teacher(device)

        def answers(make_views: Callable[..., MakeViews]) -> np.ndarray:
            return compute(teacher, partial(make_views, view_seed=self.view_seed, device=device), only=self.views)

        arrays = {VIEWS: answers(self.task.make_views)}
        if self.task.unlabelled is not None:
            arrays[UNLABELLED] = answers(self.task.make_unlabelled_views)
        self._files = {name: partial(_save_array, array) for name, array in arrays.items()}
        return sum(array.shape[0] * array.shape[1] for array in arrays.values())

    def _answer_held_out(self) -> int:
        task, device = self.task, default_device()
        teacher = task.load_teacher(device)
        predictions = held_out(teacher, *to_device(task.validation, device)).argmax(1).cpu().numpy()
        answers = torch.stack([plain_logits(member.model, task.test) for member in teacher]).mean(0)
        self._files = {VALIDATION: partial(_save_array, predictions),
                       TEST_ANSWERS: lambda path: write_answers(answers, task.test.labels, path)}
        return len(task.validation) + len(task.test)

    def save(self, folder: Path) -> None:
        for name, write in self._files.items():
            write(folder / name)
        (folder / CHECKPOINT_MARK).touch()

    def load(self, folder: Path) -> None:
        raise ValueError("a piece of a teacher's answers begins anew")


def _save_array(array: np.ndarray, path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.write_bytes(buffer.getbuffer())


class TeacherLogitsTrainable(StudyTrainable):
    """Answers for the teacher. Its parameters: first_view, view_count; 0 views are the held-out images."""

    def start(self, config: dict) -> Answering:
        return Answering(self.task, **config["parameters"], view_seed=config["view_seed"])

    def write(self, folder: Path) -> None:
        self.training.save(folder)
