"""Random resized crop, as torchvision's RandomResizedCrop."""

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdstudy.trainables.augment import boxes


def draw(uniform: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]) -> np.ndarray:
    """Boxes to cut out, (N, 4) as shares of the image. uniform: (N, boxes.COLUMNS). Where none fits, the largest box
    in the middle of the image whose ratio is allowed, as torchvision has it."""
    width, height = min(1.0, ratio[1]), min(1.0, 1 / ratio[0])
    middle = ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)
    return boxes.within(uniform, scale, ratio, otherwise=middle)


def apply(images: torch.Tensor, crops: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a box (B, 4) out of each image (B, C, H, W) in 0..1 and resize it: (B, C, size, size).

    Bicubic and antialiased, as at test time. Each image has a box of another size, so they are resized one by one.
    """
    height, width = images.shape[-2:]
    places = boxes.pixels(crops, height, width).tolist()
    cut = [_cut(image, *place, size) for image, place in zip(images, places, strict=True)]
    return torch.stack(cut).clamp_(0, 1)


def _cut(image: torch.Tensor, left: int, top: int, right: int, bottom: int, size: int) -> torch.Tensor:
    left, top = min(left, image.shape[-1] - 1), min(top, image.shape[-2] - 1)
    return functional.resized_crop_image(
        image, top, left, max(1, bottom - top), max(1, right - left), [size, size], InterpolationMode.BICUBIC,
        antialias=True,
    )
