"""The teacher's answers for every view, computed once, or given live where they do not fit."""

import numpy as np
import torch

from trainables.loop import EVALUATION_BATCH, read_only_tensor
from trainables.models import Classifier
from trainables.views import Views


@torch.no_grad()
def answer(teacher: Classifier, views: Views, view: int, indices: torch.Tensor,
           autocast: torch.dtype | None = None) -> torch.Tensor:
    """The teacher's logits (B, C) in fp16 for a view of the images at `indices`, in evaluation mode."""
    teacher.eval()
    images = views.batch(view, indices).images
    with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
        return teacher(images).half()


def compute(teacher: Classifier, views: Views, autocast: torch.dtype | None = None,
            chunk: int = EVALUATION_BATCH) -> np.ndarray:
    """The teacher's logits for all views, fp16, (V, N, C), in chunks of `chunk` images in their stored order."""
    chunks = torch.arange(len(views), device=views.images.device).split(chunk)
    return np.stack([
        torch.cat([answer(teacher, views, view, indices, autocast) for indices in chunks]).cpu().numpy()
        for view in range(views.count)
    ])


class CachedLogits:
    """Answers from an array (V, N, C) fp16, usually in Ray's object store. It stays on the host; a batch is copied."""

    def __init__(self, logits: np.ndarray, device: torch.device):
        self.logits, self.device = read_only_tensor(logits), device

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        answers = self.logits[view % len(self.logits)]
        return answers[indices.to(answers.device)].to(self.device, non_blocking=True)


class LiveLogits:
    """Answers from the teacher in the loop, for when the cache would not fit. `views` are at the teacher's size."""

    def __init__(self, teacher: Classifier, views: Views, autocast: torch.dtype | None = None):
        self.teacher, self.views, self.autocast = teacher, views, autocast

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        return answer(self.teacher, self.views, view, indices, self.autocast)
