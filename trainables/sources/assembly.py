"""From images that are listed but not decoded yet, with their labels, to the form that every source returns."""

from collections.abc import Mapping, Sequence

import numpy as np

from kdstudy.trainables.images import Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.decoding import Encoded, decode
from kdstudy.trainables.sources.labels import check_same_classes, numbered, without_label

ORDER = ("train", "validation", "test")


def assembled(splits: Mapping[str, tuple[Sequence[Encoded], np.ndarray]], settings: DataSettings,
              names: tuple[str, ...] | None = None, notes: Sequence[str] = ()) -> Raw:
    """Leave out splits without labels, number the classes, and decode the rest.

    splits: images and their labels, as `plain_labels` gives them, by name of the split. names: the source's own class
    names, None if it has none. notes: about the listing. Raises ValueError.
    """
    where = f"data.source = {settings.source!r}"
    labels = {split: splits[split][1] for split in ORDER if split in splits}
    without = without_label(labels, where)
    names, labels = numbered({split: found for split, found in labels.items() if split not in without}, names, where)
    if settings.classes is None:  # else it may name only those that all splits have
        check_same_classes(names, labels, where)
    decoded = decode({split: (splits[split][0], found) for split, found in labels.items()}, settings)
    return Raw.from_splits(names, decoded.splits, (*notes, *without.values(), *decoded.notes), decoded.unreadable)
