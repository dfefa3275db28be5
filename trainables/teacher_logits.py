"""The teacher's logits and features for every view: cached, or computed during training if they do not fit into memory.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from kdstudy.trainables import top_k
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
    """Logits computed when they are needed: the mean over the teacher's models, each at its own image size. Likewise
    their pooled features, side by side: of two models, the features of one number have nothing in common."""

    def __init__(self, teacher: list[TeacherModel], make_views: MakeViews):
        self.teacher = teacher
        sizes = {member.model.size for member in teacher}
        self.views = {size: make_views(size) for size in sizes}

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) in fp16 for one view of the images at `indices` (B,)."""
        return _mean(self._of_each(Classifier.__call__, view, indices))

    def features(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        """Features (B, D) in fp16 for the same images."""
        return self.with_features(view, indices)[1]

    def with_features(self, view: int, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, C) and features (B, D), computed together. Raises ValueError if fp16 cannot hold the features."""
        logits, features = zip(*self._of_each(Classifier.with_features, view, indices), strict=True)
        both = torch.cat(features, 1).half()
        if not both.isfinite().all():
            raise ValueError("the teacher has features that fp16 cannot hold, beyond 65504; choose a loss that reads "
                             "logits")
        return _mean(logits), both

    @torch.no_grad()
    def _of_each(self, compute: Callable[[Classifier, torch.Tensor], Any], view: int, indices: torch.Tensor
                 ) -> list[Any]:
        images = {size: views.batch(view, indices).images for size, views in self.views.items()}
        found = []
        for model, autocast in self.teacher:
            model.eval()
            own = images[model.size]
            with torch.autocast(own.device.type, autocast, enabled=autocast is not None):
                found.append(compute(model, own))
        return found


def _mean(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of several models' logits (B, C), in fp16."""
    if len(logits) == 1:
        return logits[0].half()
    return torch.stack([part.float() for part in logits]).mean(0).half()


class CachedLogits:
    """Logits from an array (V, N, C) fp16, usually in Ray's object store, or features (V, N, D), or packed logits
    (V, N, 2k + 1) int16, see `top_k`. The current view's are kept on the device.

    classes: C, to unpack the latter."""

    def __init__(self, logits: np.ndarray, device: torch.device, classes: int):
        self.logits, self.device, self.classes = read_only_tensor(logits), device, classes
        self._view: int | None = None

    def __call__(self, view: int, indices: torch.Tensor) -> torch.Tensor:
        """Those (B, C or D) in fp16 for one view of the images at `indices` (B,). View V is view 0 again."""
        view %= len(self.logits)
        if view != self._view:
            self._view, self._current = view, self.logits[view].to(self.device)
        found = self._current[indices]
        return top_k.unpack(found, self.classes) if found.dtype == torch.int16 else found


def compute(teacher: list[TeacherModel], make_views: MakeViews, chunk: int | None = None,
            only: range | None = None, keep: int | None = None) -> np.ndarray:
    """The teacher's logits for all views, or `only` for some: (V, N, C) fp16, the images in their stored order.

    chunk: how many images to compute at a time. keep: how many logits of an image to keep, less than C; they are then
    packed, (V, N, 2 keep + 1) int16, see `top_k`.
    """
    live = LiveLogits(teacher, make_views)
    return _compute(live, lambda *images: (_packed(live(*images), keep),), chunk, only)[0]


def compute_with_features(teacher: list[TeacherModel], make_views: MakeViews, chunk: int | None = None,
                          only: range | None = None, keep: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The same logits, and the teacher's features (V, N, D) fp16; the arguments are those of `compute`."""
    live = LiveLogits(teacher, make_views)

    def both(*images: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = live.with_features(*images)
        return _packed(logits, keep), features

    return _compute(live, both, chunk, only)


def _packed(logits: torch.Tensor, keep: int | None) -> torch.Tensor:
    return logits if keep is None else top_k.pack(logits, keep)


def _compute(live: LiveLogits, of_images: Callable[..., tuple[torch.Tensor, ...]], chunk: int | None,
             only: range | None) -> tuple[np.ndarray, ...]:
    """What a function returns for (view, indices), put together to arrays (V, N, ...)."""
    views = next(iter(live.views.values()))
    device = views.images.device
    chunks = torch.arange(len(views), device=device).split(chunk or evaluation_batch(device))
    found = []
    for view in only or range(views.count):
        parts = zip(*(of_images(view, indices) for indices in chunks), strict=True)
        found.append([torch.cat(part).cpu().numpy() for part in parts])
    return tuple(np.stack(arrays) for arrays in zip(*found, strict=True))


def held_out(teacher: list[TeacherModel], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's mean logits (N, C) in fp32 for images (N, C, H, W) uint8 without augmentation."""
    logits = [Evaluator(images, labels, model.size).logits(model, autocast) for model, autocast in teacher]
    return torch.stack(logits).mean(0)
