"""Random resized crop, as torchvision's RandomResizedCrop."""

import numpy as np
import torch
import torch.nn.functional as F

from kdstudy.trainables.augment import boxes


def draw(uniform: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]) -> np.ndarray:
    """Boxes to cut out, (N, 4) as shares of the image. uniform: (N, boxes.COLUMNS). Where none fits, the largest box
    in the middle of the image whose ratio is allowed, as torchvision has it."""
    width, height = min(1.0, ratio[1]), min(1.0, 1 / ratio[0])
    middle = ((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)
    return boxes.within(uniform, scale, ratio, otherwise=middle)


def apply(images: torch.Tensor, crops: torch.Tensor, flip: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a box (B, 4) out of each image (B, C, H, W), uint8 or float in 0..1, mirror it where `flip` (B,) says so, and
    resize it: (B, C, size, size) float32 in 0..1. Each box has a size of its own, so they are resized one by one."""
    places = boxes.pixels(crops, *images.shape[-2:]).tolist()
    return torch.cat([resize(_cut(image, place, mirrored), size)
                      for image, place, mirrored in zip(images.split(1), places, flip.tolist(), strict=True)])


def _cut(image: torch.Tensor, place: list[int], mirrored: bool) -> torch.Tensor:
    left, top = min(place[0], image.shape[-1] - 1), min(place[1], image.shape[-2] - 1)
    cut = image[:, :, top : max(place[3], top + 1), left : max(place[2], left + 1)]
    cut = cut.flip(3) if mirrored else cut
    return cut if cut.is_floating_point() else cut.float().div_(255)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images (B, C, H, W) in 0..1 to (B, C, size, size), as timm's transform at test time does for most models:
    bicubic, antialiased when shrinking."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp_(0, 1)
