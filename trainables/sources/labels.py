"""Labels as they are found - numbers, words, true and false - to class numbers; names of splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# How folders, files and arrays call their splits.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}
METADATA = "metadata.csv"  # lists the files of Hugging Face's image folders, with their labels
LARGEST_LABEL = 100_000  # beyond, labels are identifiers and not classes
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?|nan", re.IGNORECASE)
HIDDEN = -1  # the label of an image whose label is not given, as in many published test sets

Labels = dict[str, np.ndarray]  # by split: (N,) int64 with HIDDEN, or (N,) objects, words with None


def check_largest_label(largest: int, where: str) -> None:
    """Raises ValueError if labels cannot be class numbers. where: begins the message."""
    if largest > LARGEST_LABEL:
        raise ValueError(f"{where}: labels go up to {largest}; they must be class numbers, counted from 0")


def plain_labels(values: np.ndarray | Sequence[Any], where: str) -> np.ndarray:
    """Labels of any accepted kind: (N,) int64, HIDDEN where there is none, or words (N,), None where there is none.

    Whole numbers may be stored as floats, and two classes as true and false. where: begins the message of ValueError.
    """
    values = np.asarray(values)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind in "UO":
        if all(value is None for value in values.tolist()):
            return np.full(len(values), HIDDEN)
        if all(value is None or isinstance(value, str) for value in values.tolist()):
            return np.array([value or None for value in values.tolist()], object)
        values = np.array([np.nan if value is None else value for value in values.tolist()], float)
    if values.dtype.kind == "f":
        return _whole(values, where)
    if values.dtype.kind not in "biu":
        raise ValueError(f"{where} are {values.dtype}; they must be integers or words")
    numbers = values.astype(np.int64)
    return np.where(numbers < 0, HIDDEN, numbers)


def _whole(values: np.ndarray, where: str) -> np.ndarray:
    """Floats that are whole numbers, (N,), as int64; HIDDEN where they are NaN."""
    given = np.isfinite(values)
    if (fractions := values[given] % 1 != 0).any():
        raise ValueError(f"{where} have fractions, such as {values[given][fractions][0]:g}; they must be integers or "
                         "words")
    return np.where(given & (values >= 0), np.where(given, values, 0), HIDDEN).astype(np.int64)


def numbers_in_words(words: Sequence[str | None]) -> np.ndarray:
    """Words from a text file as numbers, if all are, such as 3 and 3.0, else as they are; None where one is empty.

    With a leading zero they are words: 1 and 01 are two names.
    """
    if all(not word or NUMBER.fullmatch(word) for word in words):
        return np.array([float(word or "nan") for word in words])
    return np.array([word or None for word in words], object)


def from_text(words: Mapping[str, Sequence[str | None]], where: str) -> Labels:
    """Labels per split, as `plain_labels` gives them, of words from text files: numbers if those of all splits are."""
    kinds, labels = numbers_in_words([word for found in words.values() for word in found]), {}
    for split, found in words.items():
        own, kinds = kinds[:len(found)], kinds[len(found):]
        labels[split] = plain_labels(own, f"{where}: labels of its {split} split")
    return labels


def is_words(labels: np.ndarray) -> bool:
    return labels.dtype == object


def hidden(labels: np.ndarray) -> np.ndarray:
    """Which images have no label, (N,) bool."""
    return np.array([label is None for label in labels], bool) if is_words(labels) else labels == HIDDEN


def without_label(labels: Mapping[str, np.ndarray], where: str) -> dict[str, str]:
    """The splits beside `train` that are of no use, because they are empty or no image has a label, each with a note.

    Raises ValueError if images lack labels in `train`, or only some in another split.
    """
    notes = {}
    for split, found in labels.items():
        missing = int(hidden(found).sum())
        if split != "train" and missing == len(found):
            what = f"none of its {len(found)} images has a label" if missing else "it is empty"
            notes[split] = left_out(split, what)
        elif missing:
            raise ValueError(f"{where}: {missing} of the {len(found)} images of its {split} split have no label, or a "
                             "negative one; remove them, or give each a label, with classes counted from 0")
    return notes


def left_out(split: str, why: str) -> str:
    """The note about a split of the source's that is not used."""
    return f"the {split} split of the data is left out ({why}); a share of the training images takes its place"


def numbered(labels: Labels, names: tuple[str, ...] | None, where: str) -> tuple[tuple[str, ...], Labels]:
    """Class names and, per split, class numbers (N,) int64.

    labels: as `plain_labels` gives them, none hidden. names: the source's own class names, None if it has none; words
    are then the names, in order, and numbers name themselves. Raises ValueError.
    """
    words = {split: is_words(found) for split, found in labels.items()}
    if len(set(words.values())) > 1:
        raise ValueError(f"{where}: labels must be integers or words, the same in all files; they are words in "
                         f"{' and '.join(split for split, are in words.items() if are)} alone")
    if not words["train"]:
        largest = max(int(found.max(initial=-1)) for found in labels.values())
        check_largest_label(largest, where)
        names = names or tuple(map(str, range(largest + 1)))
        for split, found in labels.items():
            if len(found) and found.max() >= len(names):
                raise ValueError(f"{where}: labels of its {split} split range from {found.min()} to {found.max()}, but "
                                 f"there are {len(names)} classes, 0 to {len(names) - 1}")
        return names, labels
    names = names or tuple(sorted({word for found in labels.values() for word in found}))
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := {word for found in labels.values() for word in found} - set(names):
        raise ValueError(f"{where}: labels that are not among its class names: {first_few(unknown)}")
    return names, {split: np.array([numbers[word] for word in found], np.int64) for split, found in labels.items()}


def check_same_classes(names: Sequence[str], labels: Labels, where: str) -> None:
    """Raises ValueError unless the images of every split are of the same classes. labels: class numbers."""
    of_train = set(labels["train"].tolist())
    for split, found in labels.items():
        there = set(found.tolist())
        differences = [f"{what} {first_few(names[number] for number in numbers)}" for what, numbers in
                       (("lacks", of_train - there), ("adds", there - of_train)) if numbers]
        if differences:
            raise ValueError(f"{where}: the classes of train and {split} differ: {split} {', '.join(differences)}; "
                             "add images, or name the classes you want in data.classes")


def check_column(names: Sequence[str], name: str, setting: str) -> None:
    """Raises ValueError unless a table has the column that a setting of [data] names."""
    if name not in names:
        raise ValueError(f"data.{setting} = {name!r} is not a column; the columns are {', '.join(names)}")


def is_metadata(file: str) -> bool:
    """Whether a file, by its path, is METADATA in some folder."""
    return file.rpartition("/")[2].lower() == METADATA


def first_few(names: Iterable[str]) -> str:
    """Sorted names for a message: 'a', 'b', 'c' and 4 more."""
    names = sorted(names)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def split_in(name: str) -> str | None:
    """The split that a path names as a word in one of its parts, the last first, such as data/cifar-train-01; None if
    it names none."""
    for part in reversed(name.lower().split("/")):
        for word in re.findall(r"[a-z]+", part):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None
