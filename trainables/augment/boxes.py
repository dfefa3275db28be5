"""Random boxes in an image: left, top, right and bottom edge, as shares of its width and height.

Shares suit every image size: teacher and student see the same box.
"""

import numpy as np
import torch

ATTEMPTS = 10  # as torchvision's RandomResizedCrop and timm's RandomErasing
COLUMNS = 2 * ATTEMPTS + 2  # random numbers that `within` needs
NOWHERE = (0.0, 0.0, 0.0, 0.0)


def within(uniform: np.ndarray, area: tuple[float, float], ratio: tuple[float, float],
           otherwise: tuple[float, float, float, float]) -> np.ndarray:
    """Boxes within a square image, (N, 4) float64: the first of ten whose size fits, anywhere in it with equal
    probability.

    uniform: (N, COLUMNS) in [0, 1). area: smallest and largest share of the image, drawn uniformly. ratio: smallest and
    largest width / height, whose logarithm is drawn uniformly. otherwise: the box if none of the ten fits.
    """
    areas = area[0] + (area[1] - area[0]) * uniform[:, :ATTEMPTS]
    low, high = np.log(ratio)
    ratios = np.exp(low + (high - low) * uniform[:, ATTEMPTS:-2])
    widths, heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    fits = (widths <= 1) & (heights <= 1)
    rows, first = np.arange(len(uniform)), fits.argmax(1)
    width, height = widths[rows, first], heights[rows, first]
    left, top = uniform[:, -2] * (1 - width), uniform[:, -1] * (1 - height)
    boxes = np.stack([left, top, left + width, top + height], 1)
    return np.where(fits.any(1)[:, None], boxes, otherwise)


def around(uniform: np.ndarray, largest: float) -> np.ndarray:
    """Square boxes whose centre lies anywhere in the image, and of which only the part within it counts, (N, 4).

    uniform: (N, 3) in [0, 1). largest: share of the image; a box's, before it is cut off at the edges, is drawn
    uniformly up to this. Source: Yun et al., "CutMix", 2019, arXiv:1905.04899, section 3.1.
    """
    half = np.sqrt(largest * uniform[:, :1]) / 2
    centre = uniform[:, 1:]
    return np.concatenate([centre - half, centre + half], 1).clip(0, 1)


def pixels(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Boxes (B, 4) at an image size, their edges rounded to whole pixels: (B, 4) int64."""
    return (boxes * boxes.new_tensor([width, height, width, height])).round().long()


def inside(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Which pixels of square images lie in the boxes (B, 4): (B, 1, size, size) bool."""
    left, top, right, bottom = pixels(boxes, size, size)[:, :, None].unbind(1)
    places = torch.arange(size, device=boxes.device)
    rows, columns = (places >= top) & (places < bottom), (places >= left) & (places < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
