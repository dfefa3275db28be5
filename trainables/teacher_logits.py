"""The teacher's answers for every view, computed once, or given live where they do not fit."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from kdstudy.trainables.loop import Evaluator, evaluation_batch, read_only_tensor
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.views import Views


class TeacherModel(NamedTuple):
    """One of a teacher's models, on its device and in evaluation mode, and the precision it computes in."""

    model: Classifier
    autocast: torch.dtype | None = None


# The views of some images at a given size; a teacher's models may differ in theirs.
MakeViews = Callable[[int], Views]


class LiveLogits:
    """The answers of the teacher in the loop: the mean of its models' logits, each at its own image size."""

    def __init__(self, teacher: list[TeacherModel], make_views: MakeViews):
        self.teacher = teacher
        sizes = {member.model.size for member in teacher}
        self.views = {size: make_views(size) for size in sizes}

    @torch.no_grad()
    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) in fp16 for a view of the images at `indices`."""
        images = {size: views.batch(view, indices).images for size, views in self.views.items()}
        answers = []
        for model, autocast in self.teacher:
            model.eval()
            own = images[model.size]
            with torch.autocast(own.device.type, autocast, enabled=autocast is not None):
                answers.append(model(own))
        if len(answers) == 1:
            return answers[0].half()
        return torch.stack([answer.float() for answer in answers]).mean(0).half()


def compute(teacher: list[TeacherModel], make_views: MakeViews, chunk: int | None = None,
            only: range | None = None) -> np.ndarray:
    """The teacher's logits for all views or `only` some, fp16, (V, N, C), in chunks of `chunk` images in their stored
    order."""
    live = LiveLogits(teacher, make_views)
    views = next(iter(live.views.values()))
    device = views.images.device
    chunks = torch.arange(len(views), device=device).split(chunk or evaluation_batch(device))
    return np.stack([
        torch.cat([live(view, indices) for indices in chunks]).cpu().numpy() for view in only or range(views.count)
    ])


def held_out(teacher: list[TeacherModel], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's mean logits (N, C) in fp32 for images as they are."""
    answers = [Evaluator(images, labels, model.size).logits(model, autocast) for model, autocast in teacher]
    return torch.stack(answers).mean(0)


class CachedLogits:
    """Answers from an array (V, N, C) fp16, usually in Ray's object store. The current view's lie on the device."""

    def __init__(self, logits: np.ndarray, device: torch.device):
        self.logits, self.device = read_only_tensor(logits), device
        self._view: int | None = None

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        view %= len(self.logits)
        if view != self._view:
            self._view, self._answers = view, self.logits[view].to(self.device)
        return self._answers[indices]
