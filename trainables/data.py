"""The images of a study: loaded, checked, and split once, stratified by class, with a seed of their own."""

import difflib
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kdstudy.trainables import sources
from kdstudy.trainables.images import ImageSet, Raw, Unreadable
from kdstudy.trainables.messages import printable
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.brightness import dark_note
from kdstudy.trainables.sources.labels import first_few

HELD_OUT = {"validation": 0.1, "test": 0.2}  # shares, if neither the settings nor the source determine the split


@dataclass(frozen=True)
class Splits:
    """Disjoint splits.

    student_train: the part of `train` that the student sees with labels. unlabelled: the part that it sees without,
    None if none. duplicates: how many images of one split have the same pixels as one of another, before any were
    dropped, by pair of splits, such as "train_test". dropped: how many training images were left out as duplicates.
    notes: what a reader of the study must know about the images, each a sentence without a capital and a full stop.
    unreadable: the image files that were left out.
    """

    train: ImageSet
    student_train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    unlabelled: ImageSet | None = None
    duplicates: dict[str, int] | None = None
    dropped: int = 0
    notes: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Pixels; images are square."""
        return self.train.images.shape[2]

    @property
    def seen_by_student(self) -> int:
        """How many images the student sees, with and without labels."""
        return len(self.student_train) + (len(self.unlabelled) if self.unlabelled is not None else 0)


def load(settings: DataSettings) -> Splits:
    """Read and split the images. The same settings and files give the same splits on every machine.

    Raises ValueError, in one line that names the setting or the file, if the images cannot be read or split.
    """
    raw = sources.read(settings)
    check(raw, settings.source)
    if not isinstance(settings.classes, tuple):
        raw = _without_empty_classes(raw, settings.source)
    raw = _subset(raw, settings.classes)
    check_classes(raw, settings.source)
    dark = dark_note(images.images for images in raw.splits.values())
    return split(raw.noting(dark, _names_note(raw.class_names)), settings)


# -- checks -----------------------------------------------------------------------------------------------------------


def check(raw: Raw, source: str) -> None:
    """Raises ValueError if a model cannot be trained on what a source returned. source: data.source, for messages."""
    where = f"data.source = {source!r}"
    _check_names(raw.class_names, where)
    for name, images in raw.splits.items():
        if not len(images):
            raise ValueError(f"{where}: its {name} split is empty")
        low, high = images.labels.min(), images.labels.max()
        if low < 0 or high >= len(raw.class_names):
            raise ValueError(f"{where}: labels of its {name} split range from {low} to {high}, but there are "
                             f"{len(raw.class_names)} classes, 0 to {len(raw.class_names) - 1}")
        if images.images.shape[1:] != raw.train.images.shape[1:]:
            raise ValueError(f"{where}: images of its {name} split are {_shape(images)}, those of train "
                             f"{_shape(raw.train)}; set data.stored_size to resize all to one size")


def _check_names(names: tuple[str, ...], where: str) -> None:
    if len(names) < 2:
        raise ValueError(f"{where} has {len(names)} class; at least two are needed (an image folder has a folder per "
                         "class: name the one right above them)")
    for name in names:
        if any(0xD800 <= ord(char) < 0xE000 for char in name):  # surrogates, from a file name that is not UTF-8
            raise ValueError(f"{where}: the name of class {name!r} is not UTF-8; rename it")


def check_classes(raw: Raw, source: str) -> None:
    """Raises ValueError unless every class has an image in every split. source: data.source, for messages."""
    for name, images in raw.splits.items():
        counts = np.bincount(images.labels, minlength=len(raw.class_names))
        if (counts == 0).any():
            empty = raw.class_names[int(np.argmin(counts))]
            raise ValueError(f"data.source = {source!r}: class {empty!r} has no image in its {name} split; add images, "
                             "or name the classes you want in data.classes")


def _shape(images: ImageSet) -> str:
    channels, height, width = images.images.shape[1:]
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


# -- a subset of the classes ------------------------------------------------------------------------------------------


def _subset(raw: Raw, classes: int | tuple[str, ...] | None) -> Raw:
    """Keep only the wanted classes, renumbered in their original order. classes: how many, or which; None for all."""
    if classes is None:
        return raw
    kept = _kept_labels(classes, raw.class_names)
    if len(kept) < 2:
        raise ValueError(f"data.classes = {list(classes) if isinstance(classes, tuple) else classes} leaves "
                         f"{len(kept)} class; at least two are needed")
    renumbered = np.full(len(raw.class_names), -1)
    renumbered[kept] = np.arange(len(kept))

    def keep(images: ImageSet) -> ImageSet:
        images = images.take(np.flatnonzero(renumbered[images.labels] >= 0))
        return replace(images, labels=renumbered[images.labels])

    return replace(raw.map_splits(keep), class_names=tuple(raw.class_names[label] for label in kept))


def _kept_labels(classes: int | tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    """The labels of so many classes, spread evenly over all, or of those named. Raises ValueError for unknown names."""
    if isinstance(classes, int):
        number = min(classes, len(names))
        return [index * len(names) // number for index in range(number)]
    for name in classes:
        if name not in names:
            raise ValueError(f"data.classes: {name!r} is not a class of the data; {_hint(name, names)}")
    return sorted({names.index(name) for name in classes})


def _without_empty_classes(raw: Raw, source: str) -> Raw:
    """Leave out classes of which no split has an image, as where labels are counted from 1. Raises ValueError if only
    one class is left."""
    there = np.zeros(len(raw.class_names), bool)
    for images in raw.splits.values():
        there[images.labels] = True
    if there.all():
        return raw
    kept, empty = ([name for name, is_there in zip(raw.class_names, there, strict=True) if is_there == wanted]
                   for wanted in (True, False))
    _check_names(tuple(kept), f"data.source = {source!r}")
    which = f"class {empty[0]!r} is" if len(empty) == 1 else f"classes {first_few(empty)} are"
    renumbered = np.cumsum(there) - 1
    raw = raw.map_splits(lambda images: replace(images, labels=renumbered[images.labels]))
    return replace(raw, class_names=tuple(kept)).noting(f"{which} left out, because no image has that label")


def _names_note(names: tuple[str, ...]) -> str:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    return f"several classes have one name: {first_few(repeated)}" if repeated else ""


def _hint(name: str, names: tuple[str, ...]) -> str:
    if nearest := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"did you mean {nearest[0]!r}?"
    return f"it has {', '.join(names[:10])}" + (" …" if len(names) > 10 else "")


# -- splits -----------------------------------------------------------------------------------------------------------


def split(raw: Raw, settings: DataSettings) -> Splits:
    """Hold out the splits that the source lacks, count duplicates, and reduce the images to what the settings ask for.

    Raises ValueError, which names the setting, if there are too few images.
    """
    seed = settings.split_seed
    train, validation, test, notes = _held_out(raw, settings)
    duplicates, train, dropped = _duplicates(train, validation, test, drop=settings.drop_duplicates)
    if dropped and (gone := set(range(len(raw.class_names))) - set(train.labels.tolist())):
        notes.append(f"data.drop_duplicates leaves class {raw.class_names[min(gone)]!r} without a training image")
    if settings.limit:
        train, validation, test = (_at_most(images, settings.limit, seed) for images in (train, validation, test))
    train, _ = _portion(train, settings.train_images, seed, "data.train_images")
    student_train, rest = _portion(train, settings.student_images, seed, "data.student_images")
    if settings.unlabelled and not len(rest):
        raise ValueError(f"data.unlabelled = {settings.unlabelled:g} needs training images that the student does not "
                         "see with labels; make data.student_images smaller")
    return Splits(train, student_train, validation, test, raw.class_names, rest if settings.unlabelled else None,
                  duplicates, dropped, tuple(map(printable, (*raw.notes, *notes))), raw.unreadable)


def _held_out(raw: Raw, settings: DataSettings) -> tuple[ImageSet, ImageSet, ImageSet, list[str]]:
    """Training, validation and test images, the source's own or shares of its training images; and notes."""
    if raw.test is not None and settings.test is not None:
        raise ValueError(f"data.test = {settings.test:g} holds out a share, but {settings.source!r} has its own test "
                         "split; remove data.test")
    test_share = HELD_OUT["test"] if settings.test is None else settings.test
    validation_share = HELD_OUT["validation"] if settings.validation is None else settings.validation
    uses_own_validation = raw.validation is not None and settings.validation is None
    if (0 if raw.test is not None else test_share) + (0 if uses_own_validation else validation_share) >= 1:
        raise ValueError("data.validation + data.test must leave images to train on; make their sum smaller than 1")
    train, validation, test, share_of_rest, notes = raw.train, raw.validation, raw.test, validation_share, []
    if test is None:
        hold_out = _stratified if settings.test else partial(_about_share, leave=1 if uses_own_validation else 2)
        train, test = hold_out(train, test_share, settings.split_seed, f"data.test = {test_share:g}")
        notes.append(_lacking_note("test", test, raw.class_names))
        share_of_rest = validation_share / (1 - test_share)  # both are shares of the images before either is held out
    if not uses_own_validation:
        hold_out = _stratified if settings.validation else partial(_about_share, leave=1)
        train, validation = hold_out(train, share_of_rest, settings.split_seed,
                                     f"data.validation = {validation_share:g}")
        notes.append(_lacking_note("validation", validation, raw.class_names))
    return train, validation, test, [note for note in notes if note]


def _lacking_note(name: str, images: ImageSet, names: tuple[str, ...]) -> str:
    """A note about classes that have too few images to be in a split that was held out; empty if there are none."""
    lacking = [names[label] for label in np.flatnonzero(np.bincount(images.labels, minlength=len(names)) == 0)]
    if not lacking:
        return ""
    which = f"class {lacking[0]!r} has" if len(lacking) == 1 else f"{len(lacking)} classes, {first_few(lacking)}, have"
    return f"{which} too few images to be in the {name} split too"


def _portion(images: ImageSet, amount: float | int | None, seed: int, setting: str) -> tuple[ImageSet, ImageSet]:
    """A stratified part of the images, and the rest. amount: a share (float) or a number (int); None for all."""
    if isinstance(amount, int) and amount > len(images):
        raise ValueError(f"{setting} = {amount} is more than the {len(images)} training images there are")
    if amount is None or amount == (len(images) if isinstance(amount, int) else 1):
        return images, images.take(np.arange(0))
    rest, portion = _stratified(images, amount, seed, f"{setting} = {amount:g}")
    return portion, rest


def _at_most(images: ImageSet, limit: int, seed: int) -> ImageSet:
    """At most so many of the images, of every class at least one. Raises ValueError if there are more classes."""
    if len(images) <= limit:
        return images
    try:
        return _stratified(images, limit, seed, f"data.limit = {limit}")[1]
    except ValueError:
        pass
    classes = len(np.unique(images.labels))
    if limit < classes:
        raise ValueError(f"data.limit = {limit} is fewer than the {classes} classes")
    return images.take(_one_of_each(images.labels, limit, seed))


def _one_of_each(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """So many indices in order: one of each class, and others at random."""
    order = np.random.default_rng(seed).permutation(len(labels))
    first = order[np.unique(labels[order], return_index=True)[1]]
    others = order[~np.isin(order, first)]
    return np.sort(np.concatenate([first, others[:number - len(first)]]))


def _stratified(images: ImageSet, amount: float | int, seed: int, setting: str) -> tuple[ImageSet, ImageSet]:
    """Split off a share or a number of the images, in which every class keeps its share. Returns (rest, split off).

    setting: with its value, for messages. Raises ValueError, which names it, if there are too few images for that.
    """
    from sklearn.model_selection import train_test_split  # scikit-learn takes long to import

    problem, classes = f"{setting} cannot be stratified", np.bincount(images.labels)
    if classes.min() < 2:
        raise ValueError(f"{problem}: a class has {classes.min()} image; at least two are needed")
    try:
        rest, off = train_test_split(
            np.arange(len(images)), test_size=amount, random_state=seed, stratify=images.labels
        )
    except ValueError:
        number = amount if isinstance(amount, int) else int(np.ceil(amount * len(images)))
        raise ValueError(f"{problem}: splitting off {number} of {len(images)} images leaves one side with fewer images "
                         f"than the {len(classes)} classes; choose another amount") from None
    for name, part in (("split off", off), ("left", rest)):
        if (np.bincount(images.labels[part], minlength=len(classes)) == 0).any():
            raise ValueError(f"{problem}: the {len(part)} images {name} do not include all {len(classes)} classes; "
                             "choose another amount")
    return images.take(np.sort(rest)), images.take(np.sort(off))


def _about_share(images: ImageSet, share: float, seed: int, setting: str, leave: int) -> tuple[ImageSet, ImageSet]:
    """Split off about a share of the images, as nobody has asked for: as `_stratified` does if it can, else about a
    share of each class, at least one image. Returns (rest, split off).

    leave: how many images of each class the rest keeps if it can. Of classes that have no more, every second one gives
    an image. Raises ValueError if no class has two images.
    """
    try:
        return _stratified(images, share, seed, setting)
    except ValueError:
        pass
    counts = np.bincount(images.labels)
    wanted = np.maximum(1, np.floor(share * counts + 0.5).astype(int))
    numbers = np.where(counts > leave, np.minimum(wanted, counts - leave), 0)
    few = np.flatnonzero((counts > 1) & (counts <= leave))
    numbers[few[::2]] = 1
    if not numbers.any():
        raise ValueError(f"{setting} cannot be held out: there are no two images of a class; add images, or give the "
                         "data a split of its own, such as a folder test/")
    random = np.random.default_rng(seed)
    off = np.concatenate([random.permutation(np.flatnonzero(images.labels == label))[:number]
                          for label, number in enumerate(numbers)])
    is_off = np.isin(np.arange(len(images)), off)
    return images.take(np.flatnonzero(~is_off)), images.take(np.flatnonzero(is_off))


def _duplicates(train: ImageSet, validation: ImageSet, test: ImageSet, *,
                drop: bool) -> tuple[dict[str, int], ImageSet, int]:
    """Count the images of one split whose pixels also occur in another. Returns the counts, the training images, and
    how many were dropped from them, which are none unless `drop`."""
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
    """A 64-bit digest of every image's pixels, (N,) uint64."""
    digests = [hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest() for image in images.images]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
