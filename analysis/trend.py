"""Whether the gain changes along a series of studies: its slope, with an interval that respects what the studies share.

The studies of a series test on the same images, and the same seed of each confirmation starts from the same weights
where the models are the same. So a difference of right and wrong predictions is taken image by image and seed by seed,
in each study and then across the studies: nothing is treated as independent that is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdstudy.analysis.gain import SIGNIFICANT
from kdstudy.analysis.significance import crossed_interval
from kdstudy.analysis.study_files import StudyFiles

FEWEST_SEEDS = 2


def weights(amounts: Sequence[float]) -> np.ndarray:
    """The weights (K,) with which K values give the slope of their least-squares line over log2 of the amounts.

    They sum to zero. Raises ValueError where all amounts are the same."""
    places = np.log2(np.asarray(amounts, float))
    centred = places - places.mean()
    if not np.any(np.abs(centred) > 1e-12):
        raise ValueError("a slope needs at least two different amounts")
    return centred / (centred**2).sum()


def slope(amounts: Sequence[float], own: Sequence[np.ndarray], baseline: Sequence[np.ndarray]) -> dict[str, Any]:
    """How much the gain changes with each doubling of the amount, in percentage points.

    amounts: K, above 0. own, baseline: which test images each study's distilled student and its baseline got right,
    K times (seeds, N) bool, with the same seeds and images in all.

    The slope of the least-squares line through the K gains is a sum of the gains, each times a weight (`weights`), and
    so, for every seed and image, of differences between two predictions. These sums, (seeds, N), have the interval of
    any paired differences: `significance.crossed_interval`. Returns mean, low, high, p (two-sided, against zero),
    seeds, images, and level, the mean gain at the mean of log2(amount), through which the line goes.

    Raises ValueError with fewer than two seeds, and where all amounts are the same.
    """
    each = weights(amounts)
    gains = [100 * (right.astype(float) - other.astype(float)) for right, other in zip(own, baseline, strict=True)]
    sums = sum(weight * gain for weight, gain in zip(each, gains, strict=True))
    # The largest difference that one image can make: what bounds the interval where hardly any image differs.
    found = crossed_interval(sums, 1 - SIGNIFICANT, unit=100 * float(np.abs(each).sum()))
    p = max(found.p, SIGNIFICANT) if found.low <= 0 <= found.high else found.p
    return {"mean": found.mean, "low": found.low, "high": found.high, "p": p, "seeds": sums.shape[0],
            "images": sums.shape[1], "level": float(np.mean(gains))}


def trend(studies: Sequence[StudyFiles], amounts: Sequence[float]) -> tuple[dict[str, Any] | None, str]:
    """The slope of the gain over confirmed studies, on the seeds that all of them have; and, where there is none, why.

    Raises ValueError where a file of predictions is damaged."""
    if len(set(amounts)) < 2:
        return None, "fewer than two of its studies are confirmed"
    seeds = _shared_seeds(studies)
    if len(seeds) < FEWEST_SEEDS:
        return None, "its studies share fewer than two seeds"
    labels = [_labels(study) for study in studies]
    if not all(np.array_equal(labels[0], other) for other in labels[1:]):
        return None, "its studies have different test images"
    own = [study.confirmed["distilled", study.primary][:len(seeds)] for study in studies]
    baseline = [study.confirmed["baseline", "tuned"][:len(seeds)] for study in studies]
    return slope(amounts, own, baseline), ""


def _shared_seeds(studies: Sequence[StudyFiles]) -> list[int]:
    """The first seeds of the confirmations, as far as they are the same in all."""
    each = [study.done("confirm")["seeds"][:len(study.confirmed_row("baseline")["runs"])] for study in studies]
    shared = []
    for seeds in zip(*each, strict=False):
        if len(set(seeds)) > 1:
            break
        shared.append(seeds[0])
    return shared


def _labels(study: StudyFiles) -> np.ndarray:
    row = study.confirmed_row("baseline")
    return study.predictions(row["runs"][0], row["stage"])["label"].to_numpy()
