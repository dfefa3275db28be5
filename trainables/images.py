"""Images in memory, and the form in which every source returns them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
class Unreadable:
    """An image file that was left out, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Raw:
    """A source's images in the splits that the source itself has; `validation` and `test` may be missing.

    notes: what a reader of the study must know about how they were read, each a sentence without a capital and a full
    stop. unreadable: the files that were left out.
    """

    class_names: tuple[str, ...]
    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    @classmethod
    def from_splits(cls, class_names: tuple[str, ...], splits: dict[str, ImageSet], notes: tuple[str, ...] = (),
                    unreadable: tuple[Unreadable, ...] = ()) -> "Raw":
        """Build from splits by name: `train` and, if there are any, `validation` and `test`."""
        return cls(class_names, splits["train"], splits.get("validation"), splits.get("test"), notes, unreadable)

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The splits that exist, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}

    def map_splits(self, change: Callable[[ImageSet], ImageSet]) -> "Raw":
        """The same with `change` applied to every split."""
        return replace(self, **{name: change(images) for name, images in self.splits.items()})

    def noting(self, *notes: str) -> "Raw":
        """The same with further notes; empty ones are left out."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))
