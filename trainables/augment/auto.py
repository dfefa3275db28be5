"""RandAugment and TrivialAugment, with the operations and magnitudes of torchvision's classes, for whole batches.

Sources: Cubuk et al., "RandAugment", 2019, arXiv:1909.13719; Müller and Hutter, "TrivialAugment", 2021,
arXiv:2103.10158.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional

from kdstudy.trainables.augment import jitter

OPS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
       "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")
SIGNED = OPS[1:10]
BINS = 31  # of the magnitude
COLUMNS = 3  # random numbers for each operation

# The largest magnitudes, in the order of OPS: a shear, a share of the width or height, degrees, a change of a factor,
# bits to drop, a brightness above which pixels are inverted (the smallest). TrivialAugmentWide shifts by up to 32
# pixels, which are a seventh of the 224 it was made for.
LARGEST = {
    "randaugment": (0, 0.3, 0.3, 150 / 331, 150 / 331, 30, 0.9, 0.9, 0.9, 0.9, 4, 1, 0, 0),
    "trivialaugment": (0, 0.99, 0.99, 32 / 224, 32 / 224, 135, 0.99, 0.99, 0.99, 0.99, 6, 1, 0, 0),
}


def draw(uniform: np.ndarray, policy: str, magnitude: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Operations, (N, K) int64 indices of OPS, and their magnitudes, (N, K) as the functions below take them.

    uniform: (N, K * COLUMNS) in [0, 1). policy: a key of LARGEST. magnitude: of 30; None draws it for each operation.
    """
    which, sign, level = uniform.reshape(len(uniform), -1, COLUMNS).transpose(2, 0, 1)
    ops = (which * len(OPS)).astype(np.int64)
    bins = (level * BINS).astype(np.int64) if magnitude is None else magnitude
    sizes = np.array(LARGEST[policy])[ops] * bins / (BINS - 1)
    signed = np.isin(ops, [OPS.index(name) for name in SIGNED]) & (sign < 0.5)
    sizes = np.where(signed, -sizes, sizes)
    sizes = np.where(ops == OPS.index("Posterize"), np.round(8 - sizes), sizes)
    return ops, np.where(ops == OPS.index("Solarize"), 1 - sizes, sizes)


def apply(images: torch.Tensor, ops: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Apply operations one after another to images (B, C, size, size) in 0..1, in place. ops, magnitudes: (B, K), as
    `draw` returns them. The images with the same operation are changed together."""
    for op, magnitude in zip(ops.unbind(1), magnitudes.unbind(1), strict=True):
        for index in op.unique().tolist():
            rows = (op == index).nonzero()[:, 0]
            if OPS[index] != "Identity":
                images[rows] = CHANGES[OPS[index]](images[rows], magnitude[rows])
    return images


# -- the operations on images (B, C, size, size) in 0..1, with magnitudes (B,) -----------------------------------------


def geometric(name: str, images: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Shears, translations and rotations, bilinear. Black comes in from outside.

    A pixel at (x, y) comes from where the factors of x, y and 1 say; both run from -1 to 1 over the image.
    """
    size = images.shape[-1]
    one, none, angle = torch.ones_like(magnitudes), torch.zeros_like(magnitudes), magnitudes.deg2rad()
    sources = {
        "ShearX": ((one, magnitudes, magnitudes), (none, one, none)),
        "ShearY": ((one, none, none), (magnitudes, one, magnitudes)),
        "TranslateX": ((one, none, -2 * magnitudes), (none, one, none)),
        "TranslateY": ((one, none, none), (none, one, -2 * magnitudes)),
        "Rotate": ((angle.cos(), -angle.sin(), none), (angle.sin(), angle.cos(), none)),
    }[name]
    places = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    grid = images.new_empty(len(images), size, size, 2)
    for axis, (x, y, shift) in enumerate(sources):
        torch.add((x[:, None] * places)[:, None, :], (y[:, None] * places + shift[:, None])[:, :, None],
                  out=grid[..., axis])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    levels = 2 ** bits[:, None, None, None]
    return torch.minimum((images * levels).floor_(), levels - 1) / levels


def solarize(images: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    return torch.lerp(images, 1 - images, (images >= thresholds[:, None, None, None]).float())


CHANGES = {
    **{name: partial(geometric, name) for name in OPS[1:6]},
    "Brightness": lambda images, change: jitter.brightness(images, 1 + change),
    "Color": lambda images, change: jitter.saturation(images, 1 + change),
    "Contrast": lambda images, change: jitter.contrast(images, 1 + change),
    "Sharpness": lambda images, change: jitter.sharpness(images, 1 + change),
    "Posterize": posterize, "Solarize": solarize,
    "AutoContrast": lambda images, _: functional.autocontrast_image(images),
    "Equalize": lambda images, _: functional.equalize_image(images),
}
