"""Colour jitter, as torchvision's ColorJitter: brightness, contrast, saturation and hue in random order."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from kdstudy.trainables.settings import JITTER

COLUMNS = 2 * len(JITTER)


def draw(uniform: np.ndarray, strengths: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the changes, (N, 4) int64 indices of JITTER, and their amounts, (N, 4) in the order of JITTER: three
    factors from 1 - strength to 1 + strength, and the hue's shift from -strength to strength, in turns.

    uniform: (N, COLUMNS) in [0, 1).
    """
    changes = np.array(strengths) * (2 * uniform[:, 4:] - 1)
    return uniform[:, :4].argsort(1), changes + np.array([1, 1, 1, 0])


def apply(images: torch.Tensor, order: torch.Tensor, amounts: torch.Tensor,
          strengths: tuple[float, ...]) -> torch.Tensor:
    """Change images (B, C, H, W) in 0..1, in place. order, amounts: (B, 4), as `draw` returns them. Kinds of strength 0
    are left out."""
    for place in range(len(JITTER)):
        for index, (kind, strength) in enumerate(zip(JITTER, strengths, strict=True)):
            rows = (order[:, place] == index).nonzero()[:, 0] if strength else ()
            if len(rows):
                images[rows] = CHANGES[kind](images[rows], amounts[rows, index])
    return images


# -- each image of a batch by its own amount; torchvision's functions take one amount for all --------------------------


def brightness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in 0..1, factors (B,): 0 is black, 1 changes nothing."""
    return (images * factors[:, None, None, None]).clamp_(0, 1)


def contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Likewise; 0 is the mean brightness of the image."""
    grey = functional.rgb_to_grayscale_image(images)
    # In double precision, so that the order of the sum, which depends on the batch, does not show.
    return _blend(grey.mean((1, 2, 3), keepdim=True, dtype=torch.float64).float(), images, factors)


def saturation(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Likewise; 0 is grey."""
    return _blend(functional.adjust_saturation_image(images, 0.0), images, factors)


def sharpness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Likewise; 0 is blurred over 3x3 pixels."""
    return _blend(functional.adjust_sharpness_image(images, 0.0), images, factors)


def hue(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in 0..1, shifts (B,) from -0.5 to 0.5 turns."""
    return torch.stack([functional.adjust_hue_image(image, shift)
                        for image, shift in zip(images, shifts.tolist(), strict=True)])


def _blend(none: torch.Tensor, images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.lerp(none, images, factors[:, None, None, None]).clamp_(0, 1)


CHANGES = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
