"""The 1797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import numpy as np

from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.base import NamedSource
from kdstudy.trainables.sources.sizes import at_stored_size


def read(settings: DataSettings) -> Raw:
    """All digits as one split of grey images; their 17 grey levels become 0 to 255."""
    from sklearn.datasets import load_digits  # scikit-learn takes long to import

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    names = tuple(str(name) for name in bunch.target_names)
    return at_stored_size(Raw(names, ImageSet(images, bunch.target.astype(np.int64))), settings)


SOURCE = NamedSource(("digits",), read)
