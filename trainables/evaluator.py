"""A model's logits and metrics for images as they are, without augmentation."""

import torch
import torch.nn.functional as F

from kdstudy.trainables.models import Classifier
from kdstudy.trainables.views import RENDER_AHEAD_BYTES, resize

# Images per batch, without gradients. On a CPU a small batch stays in its cache.
EVALUATION_BATCH = {"cuda": 512, "cpu": 64}


class Evaluator:
    """Images to evaluate models on, resized to the models' size once if that fits into memory.

    images: (N, C, H, W) uint8; labels: (N,) int64; both on one device. size: pixels. teacher_predictions: (N,) int64,
    None if there is no teacher to compare with.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, size: int,
                 teacher_predictions: torch.Tensor | None = None):
        self.images, self.labels, self.size = images, labels, size
        self.teacher_predictions = teacher_predictions
        fits = len(labels) * images.shape[1] * size**2 * 4 <= RENDER_AHEAD_BYTES
        self._ready = resize(images.float() / 255, size) if fits else None

    @torch.no_grad()
    def logits(self, model: Classifier, autocast: torch.dtype | None = None) -> torch.Tensor:
        """The model's logits (N, C) in fp32, in evaluation mode. autocast: the precision to compute in, None for fp32.
        """
        model.eval()
        parts = []
        size = evaluation_batch(self.images.device)
        for start in range(0, len(self.labels), size):
            images = self._batch(slice(start, start + size))
            with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
                parts.append(model(images).float())
        return torch.cat(parts)

    def _batch(self, rows: slice) -> torch.Tensor:
        return resize(self.images[rows].float() / 255, self.size) if self._ready is None else self._ready[rows]

    def report(self, model: Classifier, autocast: torch.dtype | None = None) -> dict[str, float]:
        """validation_accuracy (0..1), validation_loss (mean cross-entropy) and, if there is a teacher, agreement: the
        share of images (0..1) for which model and teacher predict the same class."""
        logits = self.logits(model, autocast)
        predictions = logits.argmax(1)
        report = {
            "validation_accuracy": (predictions == self.labels).double().mean().item(),
            "validation_loss": F.cross_entropy(logits, self.labels).item(),
        }
        if self.teacher_predictions is not None:
            report["agreement"] = (predictions == self.teacher_predictions).double().mean().item()
        return report


def evaluation_batch(device: torch.device) -> int:
    """How many images to evaluate at a time."""
    return EVALUATION_BATCH.get(device.type, EVALUATION_BATCH["cpu"])
