"""Encoded images (PNG, JPEG and so on) to arrays of one size and number of channels."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.sizes import check_memory, pixels, square, stored_size

IMAGES_PER_CALL = 64  # enough that threads spend their time on decoding


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet. name: for messages; read: returns its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class _Target:
    """What all images become. resize: False if they have the size already. where: begins messages."""

    size: int  # pixels
    channels: int
    resize: bool
    where: str


def decode(splits: dict[str, tuple[Sequence[Encoded], np.ndarray]], settings: DataSettings) -> dict[str, ImageSet]:
    """Decode all images of all splits, on all cores.

    splits: images and their labels (N,) int64, by name of the split. Images become grey if all are, else RGB. Raises
    ValueError if there are none, one is damaged, their sizes differ and the settings name none, or memory is too small.
    """
    images = [image for images, _ in splits.values() for image in images]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        target = _target(pool, images, settings)
        return {name: ImageSet(_decode_split(pool, images, target), labels)
                for name, (images, labels) in splits.items()}


def _target(pool: ThreadPoolExecutor, images: Sequence[Encoded], settings: DataSettings) -> _Target:
    """Read every image's header and settle on one size and number of channels."""
    where = f"data.source = {settings.source!r}"
    headers = list(pool.map(partial(_header, where=where), images))
    if not headers:
        raise ValueError(f"{where}: there are no images")
    sizes = {size for size, _ in headers}
    channels = 1 if all(is_grey for _, is_grey in headers) else 3
    wanted = stored_size(sizes, settings)
    size = wanted or min(sizes)[0]
    check_memory(len(images) * channels * size**2, where)
    return _Target(size, channels, wanted is not None, where)


def _header(image: Encoded, where: str) -> tuple[tuple[int, int], bool]:
    """Width and height in pixels, and whether the image is grey."""
    with _opened(image, where) as picture:
        return picture.size, picture.mode in ("1", "L") or picture.mode.startswith("I;16")


def _decode_split(pool: ThreadPoolExecutor, images: Sequence[Encoded], target: _Target) -> np.ndarray:
    array = np.empty((len(images), target.channels, target.size, target.size), np.uint8)

    def fill(index: int) -> None:
        _decode_into(array[index], images[index], target)

    list(pool.map(fill, range(len(images)), chunksize=IMAGES_PER_CALL))
    return array


def _decode_into(array: np.ndarray, image: Encoded, target: _Target) -> None:
    with _opened(image, target.where) as picture:
        try:
            picture = _eight_bit(picture)
            array[:] = pixels(square(picture, target.size) if target.resize else picture, target.channels)
        except (OSError, ValueError, SyntaxError) as error:
            raise _damaged(image, target.where, error) from None


def _opened(image: Encoded, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image.read()))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(image, where, error) from None


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow would clip to white. Raises ValueError for pixels of unknown range."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("the range of its pixels is unknown; save it with 8 or 16 bits")
    return picture


def _damaged(image: Encoded, where: str, error: Exception) -> ValueError:
    reason = "it is not an image" if "cannot identify" in str(error) else one_line(error)
    return ValueError(f"{where}: {image.name} cannot be decoded ({reason}); remove it or replace it")
