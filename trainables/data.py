"""Images in memory: uint8 arrays, split once, stratified, by a seed of their own."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from kdstudy.trainables.settings import DataSettings

HELD_OUT = {"validation": 0.1, "test": 0.2}  # shares where neither the settings nor the source say


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
class Raw:
    """What a source holds: its splits as they are given; `validation` and `test` may be missing."""

    class_names: tuple[str, ...]
    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None


@dataclass(frozen=True)
class Splits:
    """Disjoint splits. `student_train` is the part of `train` that the student sees with labels, `unlabelled` what it
    sees without. `duplicates` counts the images of one split whose pixels also occur in another, before any were
    dropped; `dropped` how many training images were left out for it."""

    train: ImageSet
    student_train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    unlabelled: ImageSet | None = None
    duplicates: dict[str, int] | None = None
    dropped: int = 0

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[2]

    @property
    def seen_by_student(self) -> int:
        """How many images the student sees, with labels and without."""
        return len(self.student_train) + (len(self.unlabelled) if self.unlabelled is not None else 0)


def load(settings: DataSettings) -> Splits:
    """Read and split the images. The same settings and files give the same splits on every machine.

    Raises ValueError, in one line that names the setting or the file, where the images cannot be read or split.
    """
    from kdstudy.trainables import sources

    raw = sources.read(settings)
    check(raw, settings.source)
    raw = _subset(raw, settings.classes)
    check_classes(raw, settings.source)
    return split(raw, settings)


def _given(raw: Raw) -> dict[str, ImageSet]:
    return {name: images for name in ("train", "validation", "test") if (images := getattr(raw, name)) is not None}


def check(raw: Raw, source: str) -> None:
    """See whether what a source gave can be trained on. Raises ValueError."""
    names = f"data.source = {source!r}"
    if len(raw.class_names) < 2:
        raise ValueError(f"{names} has {len(raw.class_names)} class; at least two are needed (an image folder has a "
                         "folder per class: name the one right above them)")
    for name in raw.class_names:
        if any(0xD800 <= ord(char) < 0xE000 for char in name):
            raise ValueError(f"{names}: the name of class {name!r} is not UTF-8; rename it")
    for name, images in _given(raw).items():
        if not len(images):
            raise ValueError(f"{names}: its {name} split is empty")
        low, high = images.labels.min(), images.labels.max()
        if low < 0 or high >= len(raw.class_names):
            raise ValueError(f"{names}: labels of its {name} split go from {low} to {high}, but there are "
                             f"{len(raw.class_names)} classes, 0 to {len(raw.class_names) - 1}")
        if images.images.shape[1:] != raw.train.images.shape[1:]:
            raise ValueError(f"{names}: images of its {name} split are {_shape(images)}, those of train "
                             f"{_shape(raw.train)}; set data.stored_size to bring all to one size")


def check_classes(raw: Raw, source: str) -> None:
    """See whether every class has an image in every split. Raises ValueError."""
    for name, images in _given(raw).items():
        counts = np.bincount(images.labels, minlength=len(raw.class_names))
        if (counts == 0).any():
            empty = raw.class_names[int(np.argmin(counts))]
            raise ValueError(f"data.source = {source!r}: class {empty!r} has no image in its {name} split; add images, "
                             "or name the classes you want in data.classes")


def _shape(images: ImageSet) -> str:
    channels, height, width = images.images.shape[1:]
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _subset(raw: Raw, classes: int | tuple[str, ...] | None) -> Raw:
    """The wanted classes only, with labels renumbered in their original order."""
    if classes is None:
        return raw
    if isinstance(classes, int):
        number = min(classes, len(raw.class_names))
        kept = [index * len(raw.class_names) // number for index in range(number)]
    else:
        for name in classes:
            if name not in raw.class_names:
                raise ValueError(f"data.classes: {name!r} is not a class of the data{_nearest(name, raw.class_names)}")
        kept = sorted({raw.class_names.index(name) for name in classes})
    if len(kept) < 2:
        raise ValueError(f"data.classes = {list(classes) if isinstance(classes, tuple) else classes} leaves "
                         f"{len(kept)} class; at least two are needed")
    renumbered = np.full(len(raw.class_names), -1)
    renumbered[kept] = np.arange(len(kept))

    def keep(images: ImageSet | None) -> ImageSet | None:
        if images is None:
            return None
        images = images.take(np.flatnonzero(renumbered[images.labels] >= 0))
        return replace(images, labels=renumbered[images.labels])

    return Raw(tuple(raw.class_names[index] for index in kept), keep(raw.train), keep(raw.validation), keep(raw.test))


def _nearest(name: str, names: tuple[str, ...]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {', '.join(names[:10])}" + (
        " …" if len(names) > 10 else "")


def split(raw: Raw, settings: DataSettings) -> Splits:
    """Hold out what is not given, count duplicates, and cut down to what the settings ask for."""
    seed = settings.split_seed
    if raw.test is not None and settings.test is not None:
        raise ValueError(f"data.test = {settings.test:g} holds out a share, but {settings.source!r} has a test split "
                         "of its own; remove data.test")
    test_share = HELD_OUT["test"] if settings.test is None else settings.test
    own_validation = raw.validation is not None and settings.validation is None
    validation_share = HELD_OUT["validation"] if settings.validation is None else settings.validation
    held_out = (0 if raw.test is not None else test_share) + (0 if own_validation else validation_share)
    if held_out >= 1:
        raise ValueError("data.validation + data.test must leave images to train on; make their sum smaller than 1")
    train, test, validation = raw.train, raw.test, raw.validation
    if test is None:
        train, test = _stratified(train, test_share, seed, "data.test")
        validation_share /= 1 - test_share  # shares are of all images that have no split of their own
    if not own_validation:
        train, validation = _stratified(train, validation_share, seed, "data.validation")
    duplicates, train, dropped = _duplicates(train, validation, test, drop=settings.drop_duplicates)
    if settings.limit:
        train, validation, test = (_at_most(images, settings.limit, seed) for images in (train, validation, test))
    train, _ = _portion(train, settings.train_images, seed, "data.train_images")
    student_train, rest = _portion(train, settings.student_images, seed, "data.student_images")
    if settings.unlabelled and not len(rest):
        raise ValueError(f"data.unlabelled = {settings.unlabelled:g} needs training images that the student does not "
                         "see with labels; make data.student_images smaller")
    return Splits(train, student_train, validation, test, raw.class_names, rest if settings.unlabelled else None,
                  duplicates, dropped)


def _portion(images: ImageSet, amount: float | int | None, seed: int, setting: str) -> tuple[ImageSet, ImageSet]:
    """A stratified part of the images, as a share or a number, and the rest."""
    if amount is None or (isinstance(amount, float) and amount == 1):
        return images, images.take(np.arange(0))
    if isinstance(amount, int):
        if amount > len(images):
            raise ValueError(f"{setting} = {amount} is more than the {len(images)} training images there are")
        if amount == len(images):
            return images, images.take(np.arange(0))
    rest, portion = _stratified(images, amount, seed, setting)
    return portion, rest


def _at_most(images: ImageSet, limit: int, seed: int) -> ImageSet:
    return images if len(images) <= limit else _stratified(images, limit, seed, "data.limit")[1]


def _stratified(images: ImageSet, amount: float | int, seed: int, setting: str) -> tuple[ImageSet, ImageSet]:
    """Split off a share or a number of the images so that every class keeps its share; returns (rest, split off).

    Raises ValueError where there are too few images for that.
    """
    from sklearn.model_selection import train_test_split

    counts = np.bincount(images.labels)
    if counts.min() < 2:
        raise ValueError(f"{setting} = {amount:.3g} cannot be stratified: a class has {counts.min()} image; at least "
                         "two are needed")
    try:
        rest, off = train_test_split(
            np.arange(len(images)), test_size=amount, random_state=seed, stratify=images.labels
        )
    except ValueError:
        wanted = amount if isinstance(amount, int) else int(np.ceil(amount * len(images)))
        raise ValueError(f"{setting} = {amount:.3g} cannot be stratified: {wanted} of {len(images)} images split off "
                         f"leave one side with fewer than the {len(counts)} classes") from None
    for name, part in (("split off", off), ("left", rest)):
        if (np.bincount(images.labels[part], minlength=len(counts)) == 0).any():
            raise ValueError(f"{setting} = {amount:.3g} cannot be stratified: {len(part)} images {name} do not hold "
                             f"every one of the {len(counts)} classes; choose another amount")
    return images.take(np.sort(rest)), images.take(np.sort(off))


def _duplicates(train: ImageSet, validation: ImageSet, test: ImageSet, *,
                drop: bool) -> tuple[dict[str, int], ImageSet, int]:
    """Count images of one split whose pixels are also in another; optionally without them in train."""
    own, held = _digests(train), {"validation": _digests(validation), "test": _digests(test)}
    within = {name: np.isin(own, digests) for name, digests in held.items()}
    counts = {
        "train_validation": int(within["validation"].sum()), "train_test": int(within["test"].sum()),
        "validation_test": int(np.isin(held["validation"], held["test"]).sum()),
    }
    shared = within["validation"] | within["test"]
    if not drop or not shared.any():
        return counts, train, 0
    return counts, train.take(np.flatnonzero(~shared)), int(shared.sum())


def _digests(images: ImageSet) -> np.ndarray:
    """A 64-bit digest of every image's pixels."""
    digests = [hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest() for image in images.images]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
