"""Distillation by softened probabilities.

    T^2 * KL(teacher_T || student_T)

The index T marks softmax of the logits divided by the temperature T. The factor T^2 keeps the size of the gradient
independent of T.

Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, arXiv:1503.02531, section 2.
There T is 2 to 20, and the soft loss has the larger weight. Our alpha is that weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.soft import SoftLoss, divergence

if TYPE_CHECKING:
    from torch import Tensor


def hinton(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    student = (student_logits / temperature).log_softmax(1)
    teacher = (teacher_logits / temperature).log_softmax(1)
    return temperature**2 * divergence(teacher, student)


LOSS = SoftLoss("hinton", hinton)
