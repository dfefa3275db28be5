"""One square size for all images, and whether they fit into memory."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
from PIL import Image

from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.brightness import array_extremes, from_sixteen_bits, stretch_of, stretched

LARGEST_STORED = 224  # pixels, if no setting names a size
Sizes = Counter[tuple[int, int]]  # how many images have which width and height in pixels


def at_stored_size(raw: Raw, settings: DataSettings) -> Raw:
    """Bring images that are already arrays, (N, C, H, W) of 8 or 16 bits, to 8 bits and one square size, unless they
    have one that suits the settings.

    Raises ValueError if memory is too small.
    """
    raw = _at_eight_bits(raw, settings)
    sizes = Counter({images.images.shape[:1:-1]: 0 for images in raw.splits.values()})
    for images in raw.splits.values():
        sizes[images.images.shape[:1:-1]] += len(images)
    size = stored_size(sizes, settings)
    if size is None:
        return raw
    channels = raw.train.images.shape[1]
    check_memory(sum(map(len, raw.splits.values())) * channels * size**2, f"data.source = {settings.source!r}")
    return raw.map_splits(lambda images: _resized(images, size)).noting(size_note(sizes, settings))


def _at_eight_bits(raw: Raw, settings: DataSettings) -> Raw:
    arrays = [images.images for images in raw.splits.values()]
    if settings.stretch and len({array.dtype for array in arrays}) > 1:
        raise ValueError("data.stretch needs arrays of one kind, but only some of them have 16 bits")
    bounds = stretch_of(settings, lambda: array_extremes(arrays))
    if bounds is not None:
        # One by one, because they become floats.
        return raw.map_splits(lambda images: replace(images, images=np.stack([stretched(image, bounds) for image in
                                                                              images.images])))
    return raw.map_splits(lambda images: images if images.images.dtype == np.uint8 else
                          replace(images, images=from_sixteen_bits(images.images)))


def _resized(images: ImageSet, size: int) -> ImageSet:
    channels = images.images.shape[1]
    pictures = (Image.fromarray(image.transpose(1, 2, 0) if channels == 3 else image[0]) for image in images.images)
    return ImageSet(np.stack([pixels(square(picture, size), channels) for picture in pictures]), images.labels)


def stored_size(sizes: Sizes, settings: DataSettings) -> int | None:
    """The size in pixels to which images of these sizes are brought; None if they stay as they are."""
    (width, height), is_one_size = min(sizes), len(sizes) == 1
    if is_one_size and width == height and (settings.stored_size is None or width <= settings.stored_size):
        return None
    return settings.stored_size or settings.image_size or _usual_size(sizes)


def _usual_size(sizes: Sizes) -> int:
    """The median of the images' shorter sides in pixels, but at most LARGEST_STORED."""
    sides = np.sort(np.repeat([min(size) for size in sizes], list(sizes.values())))
    return int(min(LARGEST_STORED, sides[len(sides) // 2]))


def size_note(sizes: Sizes, settings: DataSettings) -> str:
    """A note about the size that images of these sizes are brought to, if no setting names it; else empty."""
    size = stored_size(sizes, settings)
    if size is None or settings.stored_size or settings.image_size:
        return ""
    shown = " to ".join("x".join(map(str, size)) for size in sorted({min(sizes), max(sizes)}))
    return (f"the images are not all square and of one size ({shown}): they are stored at {size}x{size} pixels, the "
            "shorter side resized and the middle cut out; data.stored_size sets another size")


def check_memory(needed: int, where: str, what: str = "its images") -> None:
    """Raises ValueError if `what`, of `needed` bytes, cannot be kept in memory. where: begins the message."""
    if needed > 0.8 * memory():
        raise ValueError(f"{where}: {what} take {needed / 2**30:.0f} GiB of this machine's "
                         f"{memory() / 2**30:.0f} GiB of memory; make data.stored_size smaller, or give a folder with "
                         "fewer images")


def memory() -> int:
    """This machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def square(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels and cut out the middle, as is usual for photographs at test time."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """A picture as (channels, H, W) uint8; channels: 3 for RGB, 1 for grey."""
    array = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return array.transpose(2, 0, 1) if channels == 3 else array[None]
