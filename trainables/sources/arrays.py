"""A .npz file of arrays: images and labels, or train_images, train_labels, val_images and so on; maybe class_names."""

import io

import numpy as np
import pyarrow as pa

from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.labels import SPLIT_NAMES, check_largest_label
from kdstudy.trainables.sources.location import Location
from kdstudy.trainables.sources.sizes import at_stored_size

# Before "images" and "labels" in the arrays' names.
PREFIXES = {"": "train", **{f"{name}_": split for name, split in SPLIT_NAMES.items()}}


def recognises(location: Location) -> bool:
    return location.is_file and location.path.endswith(".npz")


def read(location: Location, settings: DataSettings) -> Raw:
    """The arrays' splits and classes. Raises ValueError."""
    where = f"data.source = {location.source!r}"
    arrays = _load_arrays(location, where)
    splits = {split: _image_set(arrays, prefix, where) for prefix, split in PREFIXES.items()
              if f"{prefix}images" in arrays and f"{prefix}labels" in arrays}
    if "train" not in splits:
        raise ValueError(f"{where} needs arrays called images and labels, or train_images and train_labels; it has "
                         f"{', '.join(arrays) or 'none'}")
    return at_stored_size(Raw.from_splits(_class_names(arrays, splits, where), splits), settings)


def _load_arrays(location: Location, where: str) -> dict[str, np.ndarray]:
    try:
        content = location.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where} cannot be read: {one_line(error)}") from None
    if not content.startswith(b"PK"):
        raise ValueError(f"{where} is not a .npz file; numpy.savez writes one")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        if "pickle" in str(error):
            raise ValueError(f"{where} holds Python objects, which are not read; save plain arrays") from None
        raise ValueError(f"{where} is a damaged .npz file: {one_line(error)}") from None


def _class_names(arrays: dict[str, np.ndarray], splits: dict[str, ImageSet], where: str) -> tuple[str, ...]:
    largest = max(int(images.labels.max(initial=-1)) for images in splits.values())
    check_largest_label(largest, where)
    names = arrays.get("class_names", np.arange(largest + 1))
    if names.ndim != 1:
        raise ValueError(f"{where}: class_names has the shape {names.shape}; it must be a list")
    return tuple(map(str, names))


def _image_set(arrays: dict[str, np.ndarray], prefix: str, where: str) -> ImageSet:
    images = _checked_images(arrays[f"{prefix}images"], f"{where}: {prefix}images")
    labels = _checked_labels(arrays[f"{prefix}labels"], f"{where}: {prefix}labels")
    if len(images) != len(labels):
        raise ValueError(f"{where}: {prefix}images has {len(images)} entries, but {prefix}labels has {len(labels)}")
    return ImageSet(np.ascontiguousarray(images), labels.astype(np.int64))


def _checked_images(images: np.ndarray, name: str) -> np.ndarray:
    """Images of any accepted layout, as (N, C, H, W). Raises ValueError, which begins with `name`."""
    if images.dtype != np.uint8:
        raise ValueError(f"{name} is {images.dtype}; it must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"{name} has the shape {images.shape}; it must be (N, H, W), (N, H, W, C) or (N, C, H, W) "
                         "with 1 or 3 channels")
    return images


def _checked_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels (N,) or (N, 1), as (N,). Raises ValueError, which begins with `name`."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{name} is {labels.dtype} of the shape {labels.shape}; it must be integers (N,)")
    return labels


SOURCE = FileSource("a .npz file", recognises, read)
