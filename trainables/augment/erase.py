"""Random erasing: a box of an image is replaced by noise or by grey.

Source: Zhong et al., "Random erasing data augmentation", 2017, arXiv:1708.04896; areas and ratios as in timm.
"""

import numpy as np
import torch

from kdstudy.trainables.augment import boxes
from kdstudy.trainables.augment.draws import noise

AREA = (0.02, 1 / 3)  # shares of the image
RATIO = (0.3, 1 / 0.3)  # width / height
GREY = 0.5
COLUMNS = 1 + boxes.COLUMNS


def draw(uniform: np.ndarray, probability: float) -> np.ndarray:
    """Boxes to erase, (N, 4) as shares of the image, boxes.NOWHERE in images that stay whole. uniform: (N, COLUMNS)."""
    drawn = boxes.within(uniform[:, 1:], AREA, RATIO, otherwise=boxes.NOWHERE)
    return np.where(uniform[:, :1] < probability, drawn, boxes.NOWHERE)


def apply(images: torch.Tensor, erased: torch.Tensor, fill: str, indices: torch.Tensor, view_seed: int,
          view: int) -> torch.Tensor:
    """Erase a box (B, 4) of each image (B, C, size, size) in 0..1, in place.

    fill: "constant", or "noise" for a uniform value in 0..1 for every pixel and channel, which depends on (view_seed,
    view, index of the image) and on the box's size in pixels.
    """
    if fill == "constant":
        return images.masked_fill_(boxes.inside(erased, images.shape[-1]), GREY)
    places = boxes.pixels(erased, *images.shape[-2:]).tolist()
    for image, index, (left, top, right, bottom) in zip(images, indices.tolist(), places, strict=True):
        if right > left and bottom > top:
            pixels = noise(view_seed, view, index, (len(image), bottom - top, right - left))
            image[:, top:bottom, left:right] = torch.from_numpy(pixels)
    return images
