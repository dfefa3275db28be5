"""CutMix: a box of an image is replaced by that of its partner, whose label then counts by the box's share.

Source: Yun et al., "CutMix", 2019, arXiv:1905.04899.
"""

import numpy as np

from kdstudy.trainables.augment import boxes

PROBABILITY = 0.5  # of CutMix instead of mixup where both are wanted
COLUMNS = 4


def draw(uniform: np.ndarray, largest: float, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Which images take part, (N,) bool, and their boxes, (N, 4) as shares of the image, boxes.NOWHERE in the others.

    uniform: (N, COLUMNS) in [0, 1). largest: share of the image.
    """
    takes = uniform[:, 0] < probability
    return takes, np.where(takes[:, None], boxes.around(uniform[:, 1:], largest), boxes.NOWHERE)
