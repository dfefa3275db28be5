"""Images in memory, and the form in which every source returns them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    images: (N, C, H, W) uint8. labels: (N,) int64, the classes' numbers from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "ImageSet":
        """A copy of the images at `indices` (M,), in that order."""
        return ImageSet(np.ascontiguousarray(self.images[indices]), self.labels[indices])


@dataclass(frozen=True)
class Raw:
    """A source's images in the splits that the source itself has; `validation` and `test` may be missing."""

    class_names: tuple[str, ...]
    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None

    @classmethod
    def from_splits(cls, class_names: tuple[str, ...], splits: dict[str, ImageSet]) -> "Raw":
        """Build from splits by name: `train` and, if there are any, `validation` and `test`."""
        return cls(class_names, splits["train"], splits.get("validation"), splits.get("test"))

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The splits that exist, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}

    def map_splits(self, change: Callable[[ImageSet], ImageSet]) -> "Raw":
        """The same classes with `change` applied to every split."""
        return Raw.from_splits(self.class_names, {name: change(images) for name, images in self.splits.items()})
