"""One square size for all images, and whether they fit into memory."""

import os

import numpy as np
from PIL import Image

from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.settings import DataSettings


def at_stored_size(raw: Raw, settings: DataSettings) -> Raw:
    """Bring images that are already arrays to one square size, unless they have one that suits the settings.

    Raises ValueError if the settings do not name the size, or if memory is too small.
    """
    size = stored_size({images.images.shape[:1:-1] for images in raw.splits.values()}, settings)
    if size is None:
        return raw
    channels = raw.train.images.shape[1]
    check_memory(sum(map(len, raw.splits.values())) * channels * size**2, f"data.source = {settings.source!r}")
    return raw.map_splits(lambda images: _resized(images, size))


def _resized(images: ImageSet, size: int) -> ImageSet:
    channels = images.images.shape[1]
    pictures = (Image.fromarray(image.transpose(1, 2, 0) if channels == 3 else image[0]) for image in images.images)
    return ImageSet(np.stack([pixels(square(picture, size), channels) for picture in pictures]), images.labels)


def stored_size(sizes: set[tuple[int, int]], settings: DataSettings) -> int | None:
    """The size in pixels to which images of these sizes (width, height) are brought; None if they stay as they are.

    Raises ValueError if they need a size and the settings do not name one.
    """
    (width, height), is_one_size = min(sizes), len(sizes) == 1
    if is_one_size and width == height and (settings.stored_size is None or width <= settings.stored_size):
        return None
    wanted = settings.stored_size or settings.image_size
    if wanted is None:
        seen = f"{width}x{height}" if is_one_size else f"from {width}x{height} to {'x'.join(map(str, max(sizes)))}"
        raise ValueError(f"data.source = {settings.source!r}: images are not all square and of one size ({seen}); set "
                         "data.stored_size, in pixels, e.g. data.stored_size = 224")
    return wanted


def check_memory(needed: int, where: str) -> None:
    """Raises ValueError if uint8 images of `needed` bytes cannot be kept in memory. where: begins the message."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * memory:
        raise ValueError(f"{where}: its images take {needed / 2**30:.0f} GiB of this machine's "
                         f"{memory / 2**30:.0f} GiB of memory; make data.stored_size smaller, or give a folder with "
                         "fewer images")


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
