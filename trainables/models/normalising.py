"""Mean and std of images: measured per channel, and those that training programs usually take."""

import math

import numpy as np
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.settings import ModelSettings

CHUNK = 1024  # images counted at a time
LEVELS = 256  # of a uint8
# ImageNet's, that of many transformers, and none.
USUAL = ((IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), ((0.5,), (0.5,)), ((0.0,), (1.0,)))
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, a number per channel each


def with_measured(settings: ModelSettings, images: ImageSet) -> ModelSettings:
    """The settings with the mean and std of the images in place of `normalise = "images"`; others as they are.

    Raises ValueError, in one line that begins with `normalise`, if a channel is constant: it has no std.
    """
    if settings.normalise != "images":
        return settings
    mean, std = mean_and_std(images.images)
    if not min(std) > 0:
        raise ValueError(f"normalise = 'images': channel {std.index(0.0)} is the same in every pixel of the training "
                         "images, so it has no std; set mean and std instead")
    return settings.model_copy(update={"mean": mean, "std": std, "normalise": "model"})


def mean_and_std(images: np.ndarray) -> Normalisation:
    """The mean and the population standard deviation over all pixels of images (N, C, H, W) uint8, per channel, as
    shares of 255. Counting levels makes them exact, and the same on every machine."""
    channels = images.shape[1]
    counts = np.zeros((channels, LEVELS), np.int64)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=LEVELS)
    means, deviations = zip(*(_moments(row.tolist()) for row in counts), strict=True)
    return means, deviations


def usual(channels: int) -> list[Normalisation]:
    """What images of so many channels are usually normalised with."""
    return [(for_channels(mean, channels), for_channels(std, channels)) for mean, std in USUAL]


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number per channel: the values, or their average for each channel if there are others than `channels`."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _moments(counts: list[int]) -> tuple[float, float]:
    total = sum(counts)
    first = sum(level * count for level, count in enumerate(counts))
    second = sum(level**2 * count for level, count in enumerate(counts))
    return first / total / 255, math.sqrt(total * second - first**2) / total / 255


def show_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Mean and std as words: one number where all channels have the same."""
    parts = [f"{name} {', '.join(f'{value:.4g}' for value in (values if len(set(values)) > 1 else values[:1]))}"
             for name, values in (("mean", mean), ("std", std))]
    return " and ".join(parts)
