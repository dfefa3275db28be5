"""What a model costs to run, counted without allocating its weights."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdstudy.trainables.models.building import build
from kdstudy.trainables.models.classifier import Classifier
from kdstudy.trainables.settings import ModelSettings


def without_weights(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> Classifier:
    """The model on torch's meta device, where tensors have shapes but no contents. image_size: pixels."""
    with torch.device("meta"):
        plain = settings.model_copy(update={"pretrained": False})
        return build(plain, classes=classes, channels=channels, image_size=image_size)


def forward_flop(model: Classifier, channels: int) -> float:
    """The floating-point operations of a forward pass of one image; a multiply-add counts as two.

    model: from `without_weights`."""
    images = torch.zeros(1, channels, model.size, model.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.net.eval()(images)
    return counter.get_total_flops()
