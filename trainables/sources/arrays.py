"""A .npz file of arrays: images and labels, or train_images, train_labels, val_images and so on; maybe class_names.

Also as Keras calls them: x_train, y_train, x_test, y_test, or X and y.
"""

import io
import re

import numpy as np
import pyarrow as pa

from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.assembly import ORDER
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.labels import (
    SPLIT_NAMES,
    check_same_classes,
    left_out,
    numbered,
    plain_labels,
    without_label,
)
from kdstudy.trainables.sources.location import Location
from kdstudy.trainables.sources.sizes import at_stored_size

# Words in the names of arrays, the first that is there; others, such as a split's, come before or after.
IMAGES, LABELS, NAMES = ("images", "x", "image", "imgs", "data"), ("labels", "y", "label", "targets"), "class_names"
Names = dict[str, str]  # of arrays, by split


def recognises(location: Location, settings: DataSettings) -> bool:
    return location.is_file and location.path.lower().endswith(".npz")


def read(location: Location, settings: DataSettings) -> Raw:
    """The arrays' splits and classes. Raises ValueError."""
    where = f"data.source = {location.source!r}"
    with _opened(location, where) as file:
        images, labels = _named(file.files, IMAGES), _named(file.files, LABELS)
        if "train" not in images or "train" not in labels:
            raise ValueError(f"{where} needs arrays called images and labels, train_images and train_labels, x_train "
                             f"and y_train, or X and y; it has {', '.join(file.files) or 'none'}")
        found = {split: plain_labels(_flat(_array(file, name, where), f"{where}: {name}"), f"{where}: labels in {name}")
                 for split, name in labels.items() if split in images}
        without = {split: left_out(split, f"{images[split]} has no labels beside it") for split in images
                   if split not in labels} | without_label(found, where)
        found = {split: found[split] for split in ORDER if split in found and split not in without}
        names, found = numbered(found, _class_names(file, where), where)
        if settings.classes is None:
            check_same_classes(names, found, where)
        splits = {split: _image_set(_array(file, images[split], where), found[split], images[split], labels[split],
                                    where) for split in found}
    return at_stored_size(Raw.from_splits(names, splits, tuple(without.values())), settings)


def _opened(location: Location, where: str) -> np.lib.npyio.NpzFile:
    try:
        content = location.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where} cannot be read: {one_line(error)}") from None
    if not content.startswith(b"PK"):
        raise ValueError(f"{where} is not a .npz file; numpy.savez writes one")
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{where} is a damaged .npz file: {one_line(error)}") from None


def _array(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
    try:
        return file[name]
    except Exception as error:
        if "pickle" in str(error):
            raise ValueError(f"{where}: {name} holds Python objects, which are not read; save a plain array, as "
                             f"numpy.array({name}.tolist()) may give") from None
        raise ValueError(f"{where} is a damaged .npz file: {one_line(error)}") from None


def _named(names: list[str], words: tuple[str, ...]) -> Names:
    """The arrays whose names are one of the words, with or without that of a split, such as x_train; by split."""
    found: Names = {}
    for word in words:
        for name in sorted(names, key=lambda name: name.lower() == word):  # train_images before images
            parts = re.split(r"[_.-]", name.lower())
            others = [part for part in parts if part != word]
            if len(others) == len(parts) - 1 and len(others) < 2 and all(part in SPLIT_NAMES for part in others):
                found.setdefault(SPLIT_NAMES[others[0]] if others else "train", name)
    return found


def _class_names(file: np.lib.npyio.NpzFile, where: str) -> tuple[str, ...] | None:
    if NAMES not in file.files:
        return None
    names = _array(file, NAMES, where)
    if names.ndim != 1:
        raise ValueError(f"{where}: {NAMES} has the shape {names.shape}; it must be a list")
    return tuple(map(str, names))


def _image_set(images: np.ndarray, labels: np.ndarray, name: str, labels_name: str, where: str) -> ImageSet:
    images = _checked_images(images, f"{where}: {name}")
    if len(images) != len(labels):
        raise ValueError(f"{where}: {name} has {len(images)} entries, but {labels_name} has {len(labels)}")
    return ImageSet(np.ascontiguousarray(images), labels)


def _checked_images(images: np.ndarray, name: str) -> np.ndarray:
    """Images of any accepted layout, as (N, C, H, W). Raises ValueError, which begins with `name`."""
    if images.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name} is {images.dtype}; it must be uint8, 0 to 255, or uint16")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"{name} has the shape {images.shape}; it must be (N, H, W), (N, H, W, C) or (N, C, H, W) "
                         "with 1 or 3 channels")
    return images


def _flat(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels (N,) or (N, 1), as (N,). Raises ValueError, which begins with `name`."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"{name} is {labels.dtype} of the shape {labels.shape}; it must be integers or words (N,)")
    return labels


SOURCE = FileSource("a .npz file", recognises, read, is_cached=False)
