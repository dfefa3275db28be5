"""Hinton's loss of standardised logits, so that the student need not match their size.

    T^2 * KL(teacher_T || student_T), of z = (logits - mean) / standard deviation, both over an image's classes

Source: Sun et al., "Logit standardization in knowledge distillation", 2024, arXiv:2403.01427, algorithms 1 and 2. As
in algorithm 1 the variance is divided by the number of classes C; their code divides by C - 1, which makes logits
sqrt(C / (C - 1)) times smaller. T is their base temperature: 2, with the weight 9 for this loss and 0.1 for the labels,
alpha = 0.989.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.hinton import hinton
from kdstudy.trainables.losses.soft import SoftLoss

if TYPE_CHECKING:
    from torch import Tensor

LEAST_VARIANCE = 1e-14  # of logits that are all alike: their standardised ones and gradient are then 0, not NaN


def standardised(logits: Tensor) -> Tensor:
    """Logits (N, C) with mean 0 and standard deviation 1 over the classes of each row."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).clamp_min(LEAST_VARIANCE).sqrt()


def logit_std(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    return hinton(standardised(student_logits), standardised(teacher_logits), temperature)


LOSS = SoftLoss("logit-std", logit_std)
