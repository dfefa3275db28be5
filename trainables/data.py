"""Images in memory: uint8 arrays, split once, stratified, by a seed of their own."""

from dataclasses import dataclass

import numpy as np

from trainables.settings import DataSettings


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "ImageSet":
        return ImageSet(np.ascontiguousarray(self.images[indices]), self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """Disjoint splits. `student_train` is the part of `train` that the student sees."""

    train: ImageSet
    student_train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[2]


SOURCES = ("digits",)


def load(settings: DataSettings) -> Splits:
    """Read and split the images. The same settings give the same splits on every machine.

    Raises ValueError, in one line, where the source is unknown or a class has too few images to be split.
    """
    if settings.source != "digits":
        raise ValueError(f"data.source = {settings.source!r} is not known; available: {', '.join(SOURCES)}")
    if settings.validation + settings.test >= 1:
        raise ValueError("data.validation + data.test must leave images to train on; make their sum smaller than 1")
    everything, class_names = _digits()
    rest, test = _stratified(everything, settings.test, settings.split_seed, "data.test")
    share = settings.validation / (1 - settings.test)
    train, validation = _stratified(rest, share, settings.split_seed, "data.validation")
    student_train = train
    if settings.student_fraction < 1:
        _, student_train = _stratified(train, settings.student_fraction, settings.split_seed, "data.student_fraction")
    return Splits(train, student_train, validation, test, class_names)


def _digits() -> tuple[ImageSet, tuple[str, ...]]:
    """The 1797 handwritten digits of 8x8 pixels that scikit-learn ships; their 17 grey levels become 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet(images, bunch.target.astype(np.int64)), tuple(str(name) for name in bunch.target_names)


def _stratified(images: ImageSet, share: float, seed: int, setting: str) -> tuple[ImageSet, ImageSet]:
    """Split off `share` of the images so that every class keeps its share; returns (rest, split off)."""
    from sklearn.model_selection import train_test_split

    try:
        rest, off = train_test_split(
            np.arange(len(images)), test_size=share, random_state=seed, stratify=images.labels
        )
    except ValueError as error:
        raise ValueError(f"{setting} = {share:.3g} cannot be stratified: {error}") from None
    return images.take(np.sort(rest)), images.take(np.sort(off))
