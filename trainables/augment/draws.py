"""The random numbers of an augmentation, from a counter-based generator. Each kind of draw has a stream of its own, so
that adding one changes no other."""

import numpy as np

from kdstudy.trainables.seeds import derive_seed


def uniform(kind: str, view_seed: int, view: int, images: int, columns: int) -> np.ndarray:
    """Numbers in [0, 1), (N, columns) float64. Row i depends on (kind, view_seed, view, i) alone, not on N."""
    return _generator(kind, view_seed, view, 0).random((images, columns))


def noise(view_seed: int, view: int, image: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [0, 1) for the pixels of one image, float32, from a part of the stream that no other image uses."""
    return _generator("noise", view_seed, view, image).random(shape, dtype=np.float32)


def _generator(kind: str, view_seed: int, view: int, image: int) -> np.random.Generator:
    key = [derive_seed(view_seed, kind), view]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, image, 0, 0]))
