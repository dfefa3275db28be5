"""Surfaces whose answers are known: the accuracy that any (temperature, alpha, lr) reaches at any epoch.

Each function returns the logit of the accuracy at (t, a, l), the places 0 to 1 of temperature, alpha and lr within
their ranges, after a share `s`, 0 to 1, of the logarithm of the epochs. Arrays broadcast. Where a surface is flat in a
parameter, that parameter is not worth tuning; where trials end at chance, chance is one class in ten.
"""

import numpy as np

Places = np.ndarray | float
CHANCE = float(np.log(0.1 / 0.9))


def _grown(quality: Places, s: float) -> Places:
    """What is best early is best late: training raises all, and spreads what differs."""
    return -1.2 + 2.4 * s + (0.5 + 0.5 * s) * quality


def aligned(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """What is best early is best late; lr decides."""
    return _grown(1.1 * a - 3.6 * (l - 0.6) ** 2 - 1.7 * (t - 0.4) ** 2 + 0.5 * a * (t - 0.5), s)


def crossing(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """A high lr looks best early; a high alpha slows the start and pays late."""
    early = 1.5 * l - 0.8 * a
    late = 1.2 * a - 2.6 * (l - 0.5) ** 2 - 1.0 * (t - 0.4) ** 2 + 0.4 * a * (t - 0.5)
    return -1.2 + 2.4 * s + (1 - s) * early + s * late


def cliff(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """As `crossing`, but beyond an lr that depends on nothing else the training diverges after its start."""
    fall = 1 / (1 + np.exp(-40 * (l - 0.75)))
    return crossing(t, a, l, s) - 4.5 * fall * min(1.0, 1.6 * s)


def ridge(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """A lower alpha makes up for a higher temperature: neither is worth tuning while the other is free."""
    return _grown(0.9 - 3.0 * (a + t - 1) ** 2 - 2.4 * (l - 0.5) ** 2, s)


def two_optima(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """Two regions are good, far from each other, one slightly better."""
    def near(*centre: float) -> Places:
        return np.exp(-((t - centre[0]) ** 2 + (a - centre[1]) ** 2 + (l - centre[2]) ** 2) / (2 * 0.22**2))

    return _grown(1.3 * near(0.2, 0.8, 0.6) + 1.15 * near(0.8, 0.3, 0.35), s)


def step(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """From one lr on all training fails at once, and ends at chance."""
    sound = _grown(0.9 * a + 1.6 * l - 0.8 * (t - 0.5) ** 2, s)
    return np.where(np.asarray(l) + 0 * t + 0 * a > 0.7, CHANCE, sound)


def flat(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """Nothing matters."""
    return _grown(0.3 + 0 * (t + a + l), s)


def edge(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """The best lies in a corner of the space."""
    return _grown(0.8 * t + 0.9 * a - 1.8 * (l - 0.9) ** 2, s)


def lr_only(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """Only lr matters: distillation neither helps nor hurts."""
    return _grown(0.6 - 3.0 * (l - 0.55) ** 2 + 0 * (t + a), s)


def narrow(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """A high lr works in a narrow range only, and the rest is far below it."""
    return _grown(1.4 * np.exp(-((l - 0.62) ** 2) / (2 * 0.1**2)) + 0.6 * a - 0.6 * (t - 0.5) ** 2, s)


def plateau(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """Half of the space is as good as the best."""
    quality = 1.2 - 2.0 * (a - 0.7) ** 2 - 2.4 * (l - 0.5) ** 2 - 0.8 * (t - 0.5) ** 2
    return _grown(np.minimum(quality, 0.9), s)


def shifting(t: Places, a: Places, l: Places, s: float) -> Places:  # noqa: E741
    """The best lr moves with alpha."""
    return _grown(0.8 * a - 3.2 * (l - 0.3 - 0.4 * a) ** 2 - 0.9 * (t - 0.6) ** 2, s)


FAMILIES = {function.__name__: function for function in (
    aligned, crossing, cliff, ridge, two_optima, step, flat, edge, lr_only, narrow, plateau, shifting)}
