"""The squared difference of the logits themselves.

    mean over images and classes of (student - teacher)^2

Unlike the other losses it is not blind to a constant added to all logits of an image. For logits with mean zero, half
of it is what Hinton's loss tends to as T grows.

Source: Ba and Caruana, "Do deep nets really need to be deep?", 2014, arXiv:1312.6184; Kim et al., "Comparing
Kullback-Leibler divergence and mean squared error loss in knowledge distillation", 2021, arXiv:2105.08919.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.soft import SoftLoss

if TYPE_CHECKING:
    from torch import Tensor


def mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    return (student_logits - teacher_logits).square().mean()


LOSS = SoftLoss("mse", mse, parameters=())
