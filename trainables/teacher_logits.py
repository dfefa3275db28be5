"""The teacher's logits for every view: cached, or computed during training if they do not fit into memory."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from kdstudy.trainables.device import read_only_tensor
from kdstudy.trainables.evaluator import Evaluator, evaluation_batch
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.views import Views


class TeacherModel(NamedTuple):
    """One of a teacher's models, on its device and in evaluation mode.

    autocast: the precision that it computes in, None for fp32.
    """

    model: Classifier
    autocast: torch.dtype | None = None


MakeViews = Callable[[int], Views]  # renders at the size (pixels) that it is given: a teacher's models may differ in it


class LiveLogits:
    """Logits computed when they are needed: the mean over the teacher's models, each at its own image size."""

    def __init__(self, teacher: list[TeacherModel], make_views: MakeViews):
        self.teacher = teacher
        sizes = {member.model.size for member in teacher}
        self.views = {size: make_views(size) for size in sizes}

    @torch.no_grad()
    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) in fp16 for one view of the images at `indices` (B,)."""
        images = {size: views.batch(view, indices).images for size, views in self.views.items()}
        logits = []
        for model, autocast in self.teacher:
            model.eval()
            own = images[model.size]
            with torch.autocast(own.device.type, autocast, enabled=autocast is not None):
                logits.append(model(own))
        if len(logits) == 1:
            return logits[0].half()
        return torch.stack([part.float() for part in logits]).mean(0).half()


class CachedLogits:
    """Logits from an array (V, N, C) fp16, usually in Ray's object store. The current view's are kept on the device."""

    def __init__(self, logits: np.ndarray, device: torch.device):
        self.logits, self.device = read_only_tensor(logits), device
        self._view: int | None = None

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) in fp16 for one view of the images at `indices` (B,). View V is view 0 again."""
        view %= len(self.logits)
        if view != self._view:
            self._view, self._current = view, self.logits[view].to(self.device)
        return self._current[indices]


def compute(teacher: list[TeacherModel], make_views: MakeViews, chunk: int | None = None,
            only: range | None = None) -> np.ndarray:
    """The teacher's logits for all views, or `only` for some: (V, N, C) fp16, the images in their stored order.

    chunk: how many images to compute at a time.
    """
    live = LiveLogits(teacher, make_views)
    views = next(iter(live.views.values()))
    device = views.images.device
    chunks = torch.arange(len(views), device=device).split(chunk or evaluation_batch(device))
    return np.stack([
        torch.cat([live(view, indices) for indices in chunks]).cpu().numpy() for view in only or range(views.count)
    ])


def held_out(teacher: list[TeacherModel], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's mean logits (N, C) in fp32 for images (N, C, H, W) uint8 without augmentation."""
    logits = [Evaluator(images, labels, model.size).logits(model, autocast) for model, autocast in teacher]
    return torch.stack(logits).mean(0)
