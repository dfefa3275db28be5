"""What speaks against a given teacher: it may have been trained with another normalisation, or with its classes in
another order, and a file of weights says neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from kdstudy.analysis.learned import at_chance
from kdstudy.analysis.significance import wilson_interval

MOST_NAMED = 3  # classes


def of_teacher(predictions: np.ndarray, labels: np.ndarray, class_names: Sequence[str], normalised: str) -> str | None:
    """Say what is wrong with a teacher that predicts these classes (N,) for images with these labels (N,); None if
    nothing is known to be. normalised: the mean and std that it was given the images with, in words; "" if it is a
    file of logits."""
    right, reordered = float((predictions == labels).mean()), reordered_accuracy(predictions, labels, len(class_names))
    order = f"the order of the data's: {', '.join(class_names[:MOST_NAMED])}{', …' if len(class_names) > 3 else ''}"
    if wilson_interval(reordered, len(labels))[0] > wilson_interval(right, len(labels))[1]:
        return (f"the teacher has {100 * right:.1f} % of the validation images right, but would have "
                f"{100 * reordered:.1f} % if its classes stood in another order. Its outputs must be in {order}")
    if at_chance(right, len(labels), float(np.bincount(labels).max() / len(labels))):
        images = ("its images are not normalised as they were when it was trained (set teacher.mean and teacher.std; "
                  f"now {normalised}), or ") if normalised else ""
        return (f"the teacher is no better than guessing on the validation images ({100 * right:.1f} % right). Perhaps "
                f"{images}its outputs are not in {order}")
    return None


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
