"""What speaks against a given teacher: it may have been trained with another normalisation, or with its classes in
another order, and a file of weights says neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from kdstudy.analysis.learned import at_chance
from kdstudy.analysis.significance import wilson_interval

MOST_NAMED = 3  # classes
ENOUGH_IMAGES = 500  # to try other normalisations on


def few_of(images: int) -> np.ndarray:
    """Random numbers (M,) of some of so many images, always the same."""
    return np.sort(np.random.default_rng(0).permutation(images)[:ENOUGH_IMAGES])


def of_order(predictions: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str | None:
    """Say that a teacher's classes stand in another order; None if that is not shown.

    predictions, labels: the classes (N,) that it predicts for images, and theirs.
    """
    right, reordered = float((predictions == labels).mean()), reordered_accuracy(predictions, labels, len(class_names))
    if not _is_better(reordered, right, len(labels)):
        return None
    return (f"the teacher has {100 * right:.1f} % of the validation images right, but would have {100 * reordered:.1f} "
            f"% if its classes stood in another order; {_order(class_names)}")


def of_normalisation(predictions: np.ndarray, labels: np.ndarray, normalised: str,
                     others: Mapping[str, np.ndarray]) -> str | None:
    """Say that a teacher does better with another mean and std; None if that is not shown.

    normalised: those that it has, in words. others: its predictions (N,) with others, in words.
    """
    right = float((predictions == labels).mean())
    best, words = max(((float((other == labels).mean()), words) for words, other in others.items()), default=(0.0, ""))
    if not _is_better(best, right, len(labels)):
        return None
    return (f"the teacher has {100 * right:.1f} % of {len(labels)} validation images right with {normalised}, but "
            f"{100 * best:.1f} % with {words}; set teacher.mean and teacher.std to what it was trained with")


def of_guessing(predictions: np.ndarray, labels: np.ndarray, class_names: Sequence[str], normalised: str) -> str | None:
    """Say that a teacher is no better than guessing; None if it is. normalised: "" if nothing is known of it."""
    right = float((predictions == labels).mean())
    if not at_chance(right, len(labels), float(np.bincount(labels).max() / len(labels))):
        return None
    images = (f"Perhaps it was trained with another mean and std than teacher.mean and teacher.std (now {normalised}), "
              "or with its classes in another order: ") if normalised else ""
    return (f"the teacher is no better than guessing on the validation images ({100 * right:.1f} % right). {images}"
            f"{_order(class_names)}")


def _order(class_names: Sequence[str]) -> str:
    named = ", ".join(class_names[:MOST_NAMED]) + (", …" if len(class_names) > MOST_NAMED else "")
    return (f"its outputs must be in the order of the classes of data.source ({named}): reorder the rows of its last "
            "layer if they are not")


def _is_better(one: float, other: float, images: int) -> bool:
    """Whether one accuracy is beyond doubt better than another (both 0 to 1): their Wilson intervals do not meet."""
    return wilson_interval(one, images)[0] > wilson_interval(other, images)[1]


def reordered_accuracy(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """The share of images that would be right if the predicted classes were renumbered as suits them best.

    The numbers are chosen on one half of the images and tried on the other, and the reverse, so that chance gains
    nothing. predictions, labels: (N,), 0 to classes - 1.
    """
    halves = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    right = 0
    for chosen_on, tried_on in (halves, halves[::-1]):
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (predictions[chosen_on], labels[chosen_on]), 1)
        renumbered = linear_sum_assignment(counts, maximize=True)[1]
        right += int((renumbered[predictions[tried_on]] == labels[tried_on]).sum())
    return right / len(labels)
