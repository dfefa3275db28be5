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
    return _blend(functional.rgb_to_grayscale_image(images), images, factors)


def sharpness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Likewise; 0 is the mean over 3x3 pixels, the middle one counted five times, except at the edge."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = images.clone()
    blurred[:, :, 1:-1, 1:-1].mul_(4 / 13).add_(around, alpha=1 / 13)
    return _blend(blurred, images, factors)


def hue(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in 0..1, shifts (B,) from -0.5 to 0.5 turns.

    From RGB to the hue in sixths of a turn, and back by a channel = value - chroma * min(k, 4 - k) within 0..1, where k
    is the hue's distance from that channel. Source: Smith, "Color gamut transform pairs", 1978.
    """
    if images.shape[1] == 1:
        return images
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    red, green, blue = (images / chroma.clamp(min=1e-12)).split(1, 1)
    sixths = torch.where(value == images[:, :1], green - blue,
                         torch.where(value == images[:, 1:2], 2 + blue - red, 4 + red - green))
    sixths += 6 * shifts[:, None, None, None]
    distance = (sixths + images.new_tensor([5, 3, 1])[:, None, None]).remainder_(6)
    return value - chroma * torch.minimum(distance, 4 - distance).clamp_(0, 1)


def _blend(none: torch.Tensor, images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.lerp(none, images, factors[:, None, None, None]).clamp_(0, 1)


CHANGES = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
