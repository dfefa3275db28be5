"""Names of splits and classes, and limits on labels, as several readers need them."""

from collections.abc import Iterable

# How folders, files and arrays call their splits.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}
LARGEST_LABEL = 100_000  # beyond, labels are identifiers and not classes


def check_largest_label(largest: int, where: str) -> None:
    """Raises ValueError if labels cannot be class numbers. where: begins the message."""
    if largest > LARGEST_LABEL:
        raise ValueError(f"{where}: labels go up to {largest}; they must be class numbers, counted from 0")


def first_few(names: Iterable[str]) -> str:
    """Sorted names for a message: 'a', 'b', 'c' and 4 more."""
    names = sorted(names)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
