"""Encoded images (PNG, JPEG and so on) to arrays of one size and number of channels."""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from kdstudy.trainables.images import ImageSet, Unreadable
from kdstudy.trainables.messages import one_line, printable
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.brightness import Range, from_sixteen_bits, stretch_of, stretched
from kdstudy.trainables.sources.sizes import check_memory, pixels, size_note, square, stored_size
from kdstudy.trainables.sources.store import UnreachableError

DEEP = "I;16"  # how the names of Pillow's modes of 16 bits begin
RANGE_UNKNOWN = ("I", "F")  # its modes of 32 bits
ORIENTATION, UPRIGHT = 0x0112, (None, 0, 1)  # EXIF


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet. name: for messages; read: returns its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Decoded:
    """Images by split, what must be known about how they were decoded, and the files that were left out."""

    splits: dict[str, ImageSet]
    notes: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class _Row:
    """An image and its label. out: where its pixels go, (channels, size, size) uint8; None before that is known."""

    image: Encoded
    label: int
    out: np.ndarray | None = None


@dataclass(frozen=True)
class _Header:
    """size: width and height in pixels. is_deep: of 16 bits. is_turned: has an EXIF orientation, which is not applied.
    """

    size: tuple[int, int]
    is_grey: bool
    is_deep: bool
    is_turned: bool


@dataclass(frozen=True)
class _Target:
    """What all images become.

    resize: False if they have the size already. is_deep: whether any image has 16 bits, so that all are stretched as if
    they had. stretch: the values that become 0 and 255; None for the whole range.
    """

    size: int  # pixels
    channels: int
    resize: bool
    is_deep: bool
    stretch: Range | None


def decode(splits: Mapping[str, tuple[Sequence[Encoded], np.ndarray]], settings: DataSettings) -> Decoded:
    """Decode all images of all splits, on all cores.

    splits: images and their labels (N,) int64, by name of the split. Images become grey if all are, else RGB. Raises
    ValueError if there are none, more are damaged than `data.skip_unreadable`, or memory is too small.
    """
    where = f"data.source = {settings.source!r}"
    rows = {name: list(map(_Row, images, labels.tolist())) for name, (images, labels) in splits.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reader = _Reader(pool, settings)
        rows, headers = reader.read_all(_header, rows)
        if not headers:
            raise ValueError(f"{where}: there are no images")
        target, rows = _target(reader, headers, rows, settings, where)
        decoded = {name: _decode_split(reader, part, target) for name, part in rows.items()}
    notes = [size_note(Counter(header.size for header in headers), settings), _turned_note(headers), reader.note]
    return Decoded(decoded, tuple(filter(None, notes)), tuple(reader.left_out))


class _Reader:
    """Reads images on all cores, and leaves out those that cannot be read, up to `data.skip_unreadable`."""

    def __init__(self, pool: ThreadPoolExecutor, settings: DataSettings):
        self._pool, self._settings, self.left_out = pool, settings, []

    def read_all(self, work: Callable[[_Row], Any], rows: dict[str, list[_Row]]) -> tuple[dict[str, list[_Row]], list]:
        """The rows by split that can be read, and what `work` returned for them. Raises ValueError."""
        read = {name: self.read(work, part) for name, part in rows.items()}
        return ({name: [row for row, _ in part] for name, part in read.items()},
                [result for part in read.values() for _, result in part])

    def read(self, work: Callable[[_Row], Any], rows: list[_Row]) -> list[tuple[_Row, Any]]:
        """The rows that can be read, each with what `work` returned. Raises ValueError if too many cannot."""
        read = []
        for row, result in zip(rows, self._pool.map(partial(_attempt, work), rows), strict=True):
            if isinstance(result, Exception):
                self._leave_out(row.image.name, result)
            else:
                read.append((row, result))
        return read

    def _leave_out(self, file: str, error: Exception) -> None:
        reason = "it is not an image" if "cannot identify" in str(error) else one_line(error)
        if isinstance(error, UnreachableError):  # the next time it may be there
            raise ValueError(f"data.source = {self._settings.source!r}: {printable(file)} cannot be read "
                             f"({printable(reason)}); try again, or look after the permission") from None
        self.left_out.append(Unreadable(printable(file), printable(reason)))
        most, first = self._settings.skip_unreadable, self.left_out[0]
        if len(self.left_out) <= most:
            return
        others = f", nor can {most} more, which is more than data.skip_unreadable allows" if most else ""
        raise ValueError(f"data.source = {self._settings.source!r}: {first.file} cannot be decoded ({first.reason})"
                         f"{others}; remove it or replace it, or set data.skip_unreadable to the number of files that "
                         "may be left out")

    @property
    def note(self) -> str:
        """About the files that were left out; empty if there are none."""
        if not (count := len(self.left_out)):
            return ""
        which = f"{count} files that cannot be read are" if count > 1 else "1 file that cannot be read is"
        return (f"{which} left out, as data.skip_unreadable = {self._settings.skip_unreadable} allows (first: "
                f"{self.left_out[0].file})")


def _attempt(work: Callable[[_Row], Any], row: _Row) -> Any:
    """What `work` returns, or the error that it raises: Pillow's readers raise many kinds."""
    try:
        return work(row)
    except Exception as error:
        return error


def _target(reader: _Reader, headers: list[_Header], rows: dict[str, list[_Row]], settings: DataSettings,
            where: str) -> tuple[_Target, dict[str, list[_Row]]]:
    """Settle on one size, number of channels and range for all images. Returns them, and the rows that can be read."""
    sizes, channels = Counter(header.size for header in headers), 1 if all(header.is_grey for header in headers) else 3
    wanted = stored_size(sizes, settings)
    size, is_deep = wanted or min(sizes)[0], any(header.is_deep for header in headers)
    check_memory(sum(map(len, rows.values())) * channels * size**2, where)

    def extremes() -> list[Range]:
        nonlocal rows
        rows, found = reader.read_all(partial(_extremes, channels=channels, is_deep=is_deep), rows)
        return found

    stretch = stretch_of(settings, extremes)
    return _Target(size, channels, wanted is not None, is_deep, stretch), rows


def _turned_note(headers: Iterable[_Header]) -> str:
    turned = sum(header.is_turned for header in headers)
    if not turned:
        return ""
    return (f"{f'{turned} images ask' if turned > 1 else '1 image asks'} to be turned when shown (EXIF orientation); "
            "like torchvision, kdstudy reads images as they are stored")


def _decode_split(reader: _Reader, rows: list[_Row], target: _Target) -> ImageSet:
    array = np.empty((len(rows), target.channels, target.size, target.size), np.uint8)
    places = [replace(row, out=out) for row, out in zip(rows, array, strict=True)]
    read = [row for row, _ in reader.read(partial(_decode_into, target=target), places)]
    if len(read) < len(rows):
        array = np.stack([row.out for row in read]) if read else array[:0]
    return ImageSet(array, np.array([row.label for row in read], np.int64))


# -- one image --------------------------------------------------------------------------------------------------------


def _opened(row: _Row) -> Image.Image:
    return Image.open(io.BytesIO(row.image.read()))


def _header(row: _Row) -> _Header:
    with _opened(row) as picture:
        is_deep = picture.mode.startswith(DEEP) or _is_deep_pgm(picture)
        is_grey = picture.mode in ("1", "L", *RANGE_UNKNOWN) or is_deep
        return _Header(picture.size, is_grey, is_deep, _is_turned(picture))


def _is_turned(picture: Image.Image) -> bool:
    """Whether it has an EXIF orientation; damaged EXIF does not matter, for nothing else is read from it."""
    with contextlib.suppress(Exception):
        return bool(picture.info.get("exif")) and picture.getexif().get(ORIENTATION) not in UPRIGHT
    return False


def _is_deep_pgm(picture: Image.Image) -> bool:
    """Whether it is of 16 bits although its mode has 32: Pillow scales every such PGM to 0 … 65535."""
    return picture.mode == "I" and picture.format == "PPM"


def _decode_into(row: _Row, target: _Target) -> None:
    with _opened(row) as picture:
        picture = _eight_bit(picture) if target.stretch is None else _stretched(picture, target)
        row.out[:] = pixels(square(picture, target.size) if target.resize else picture, target.channels)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow would clip to white. Raises ValueError for pixels of unknown range."""
    if picture.mode.startswith(DEEP) or _is_deep_pgm(picture):
        return Image.fromarray(from_sixteen_bits(np.asarray(picture)))
    if picture.mode in RANGE_UNKNOWN:
        raise ValueError("the range of its pixels is unknown; save it with 8 or 16 bits, or set data.stretch = true")
    return picture


def _stretched(picture: Image.Image, target: _Target) -> Image.Image:
    return Image.fromarray(stretched(_values(picture, target.channels, target.is_deep), target.stretch))


def _extremes(row: _Row, channels: int, is_deep: bool) -> Range:
    """The smallest and the largest value of an image."""
    with _opened(row) as picture:
        values = _values(picture, channels, is_deep)
    return float(values.min()), float(values.max())


def _values(picture: Image.Image, channels: int, is_deep: bool) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) as they were measured; those of 8 bits as 16, if other images have these."""
    if picture.mode in RANGE_UNKNOWN or picture.mode.startswith(DEEP):
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise ValueError("some of its pixels are not finite numbers")
        return values if channels == 1 else np.stack([values] * 3, axis=-1)
    values = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return values.astype(np.uint16) * 257 if is_deep else values
