"""Data sets of torchvision by name, downloaded once. torchvision checks the files against its own digests."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.paths import cache_folder
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.base import NamedSource
from kdstudy.trainables.sources.sizes import at_stored_size

# Our name: (class in torchvision.datasets, its argument that selects the split)
DATA_SETS = {
    "cifar10": ("CIFAR10", "train"), "cifar100": ("CIFAR100", "train"), "mnist": ("MNIST", "train"),
    "fashion-mnist": ("FashionMNIST", "train"), "kmnist": ("KMNIST", "train"), "svhn": ("SVHN", "split"),
    "stl10": ("STL10", "split"),
}


def read(settings: DataSettings) -> Raw:
    """The training and test images of the data set that `data.source` names, downloaded unless they are there.

    Raises ValueError, which lists the files to download by hand, if they cannot be downloaded.
    """
    from torchvision import datasets  # takes long to import

    class_name, selector = DATA_SETS[settings.source]
    make = getattr(datasets, class_name)
    train, test = (_open_split(settings.source, make, {selector: split == "train" if selector == "train" else split})
                   for split in ("train", "test"))
    names = getattr(train, "classes", None) or [str(digit) for digit in range(10)]
    return at_stored_size(Raw(tuple(names), _images_of(train), test=_images_of(test)), settings)


def _open_split(name: str, make: type, split: dict[str, Any]) -> Any:
    """torchvision's own object for a split. make: a class of torchvision.datasets; split: the argument it takes."""
    root = cache_folder() / "torchvision"
    try:
        return make(root, **split, download=False)
    except (RuntimeError, OSError):
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return make(root, **split, download=True)
    except Exception as error:
        raise ValueError(
            f"data.source = {name!r} could not be downloaded ({one_line(error)[:80]}): put "
            f"{_needed_files(make, root)}; or set data.source to a folder or file that holds the images"
        ) from None


def _needed_files(make: type, root: Path) -> str:
    """Which files torchvision needs, from where, and the folder in which it expects them."""
    if filename := getattr(make, "filename", None):
        return f"{filename} (from {make.url}) into {root}"
    if resources := getattr(make, "resources", None):
        names, raw = ", ".join(name for name, _ in resources), root / make.__name__ / "raw"
        return f"{names} (from {make.mirrors[0]}) into {raw}"
    wanted = [make.split_list[split] for split in ("train", "test")]
    return f"{', '.join(entry[1] for entry in wanted)} (from {wanted[0][0].rsplit('/', 1)[0]}/) into {root}"


def _images_of(split: Any) -> ImageSet:
    images = np.asarray(split.data)
    labels = np.asarray(split.targets if hasattr(split, "targets") else split.labels).astype(np.int64)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    return ImageSet(np.ascontiguousarray(images), labels)


SOURCE = NamedSource(tuple(DATA_SETS), read)
