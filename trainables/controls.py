"""The teacher's logits, changed so that only part of what they say is left: for runs that a distillation is compared
with.

- `placebo`: each image gets the logits of another training image of its class, for the same view. They are as soft, and
  say as much of the class, but nothing of this image.
- `permuted`: the logits of the wrong classes are shuffled among these. How sure the teacher is stays, and how it
  spreads the rest, but not over which classes: the dark knowledge of Hinton et al. (2015, arXiv:1503.02531). After the
  control of Furlanello et al. (2018, arXiv:1805.04770), who permute all but the largest output.

Both are fixed by a seed, whatever the batches. An image keeps its partner, or its permutation, in all views: as with a
true teacher, what an image is told is the same sort of thing in every epoch.
"""

from collections.abc import Callable

import numpy as np
import torch

from kdstudy.trainables.loop import Targets
from kdstudy.trainables.seeds import derive_seed

DRAWN_AT_ONCE = 2**24  # random numbers, 128 MiB


def placebo_partners(labels: np.ndarray, seed: int) -> np.ndarray:
    """For each of N images, labels (N,), the index of another image of its class, (N,) int64.

    A permutation without a fixed point within each class: the images in a random order, each gets the next one's index.
    The only image of a class keeps its own.
    """
    random = np.random.default_rng(derive_seed(seed, "placebo"))
    partners = np.arange(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        partners[members] = np.roll(members, -1)
    return partners


def permuted_classes(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """For each of N images, labels (N,), the class whose logit each of the C classes gets: (N, C) int16, or int32 for
    more classes than that holds.

    The label's own stays; those of the other classes are a uniformly random permutation, one for each image.
    """
    random = np.random.default_rng(derive_seed(seed, "permuted"))
    sources = np.empty((len(labels), classes), np.int16 if classes <= np.iinfo(np.int16).max else np.int32)
    rows = max(1, DRAWN_AT_ONCE // classes)
    for start in range(0, len(labels), rows):
        own = labels[start:start + rows, None]
        order = random.random((len(own), classes - 1)).argsort(1)
        wrong = order + (order >= own)  # skips the label
        places = np.arange(classes - 1) + (np.arange(classes - 1) >= own)
        np.put_along_axis(sources[start:start + rows], places, wrong.astype(sources.dtype), 1)
        np.put_along_axis(sources[start:start + rows], own, own.astype(sources.dtype), 1)
    return sources


def placebo(targets: Targets, labels: np.ndarray, classes: int, seed: int, device: torch.device) -> Targets:
    """The logits of each image's partner, see `placebo_partners`. labels: (N,) of all images that targets knows."""
    partners = torch.from_numpy(placebo_partners(labels, seed)).to(device)
    return lambda view, indices: targets(view, partners[indices])


def permuted(targets: Targets, labels: np.ndarray, classes: int, seed: int, device: torch.device) -> Targets:
    """The logits with those of the wrong classes shuffled, see `permuted_classes`. labels: as for `placebo`."""
    sources = torch.from_numpy(permuted_classes(labels, classes, seed)).to(device)
    return lambda view, indices: targets(view, indices).gather(1, sources[indices].long())


# By name, as tasks have them in `control`.
CHANGES: dict[str, Callable[[Targets, np.ndarray, int, int, torch.device], Targets]] = {
    "placebo": placebo, "permuted": permuted}
