"""Brightness: pixels of more than 8 bits, and the stretching of dark ones, to 0 … 255."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kdstudy.trainables.settings import DataSettings

DARK = 32  # an eighth of the range; a data set without a brighter pixel is likely to have fewer bits than it says
CHUNK = 256  # images
Range = tuple[float, float]  # the values that become 0 and 255


def stretch_of(settings: DataSettings, extremes: Callable[[], Iterable[Range]]) -> Range | None:
    """The values that become 0 and 255 for all images alike; None without `data.stretch`.

    extremes: returns the smallest and the largest value of each image. Raises ValueError if all pixels are equal.
    """
    if not settings.stretch:
        return None
    if settings.stretch is not True:
        return settings.stretch
    lows, highs = zip(*extremes(), strict=True)
    if not min(lows) < max(highs):
        raise ValueError(f"data.stretch = true finds nothing to stretch: every pixel is {min(lows):g}")
    return float(min(lows)), float(max(highs))


def stretched(pixels: np.ndarray, bounds: Range) -> np.ndarray:
    """Pixels of any kind as uint8, of the same shape: bounds[0] and below become 0, bounds[1] and above 255."""
    low, high = bounds
    return np.rint((pixels - np.float64(low)).clip(0, high - low) * (255 / (high - low))).astype(np.uint8)


def from_sixteen_bits(pixels: np.ndarray) -> np.ndarray:
    """0 … 65535 as uint8, 0 … 255."""
    return (pixels // 257).astype(np.uint8)


def array_extremes(arrays: Sequence[np.ndarray]) -> list[Range]:
    """The smallest and the largest value of each array that is not empty."""
    return [(float(array.min()), float(array.max())) for array in arrays if array.size]


def dark_note(arrays: Iterable[np.ndarray]) -> str:
    """A note if all images, uint8 arrays, are nearly black; empty if not."""
    brightest = 0
    for array in arrays:
        for start in range(0, len(array), CHUNK):
            brightest = max(brightest, int(array[start:start + CHUNK].max()))
            if brightest >= DARK:
                return ""
    return (f"the images are nearly black: the brightest pixel of all is {brightest} of 255. If they hold fewer bits "
            "than their files allow, such as 12 of 16, data.stretch = true spreads them over the whole range; but "
            "colours of 16 bits are cut to 8 when they are read, so spread those in the files themselves")
