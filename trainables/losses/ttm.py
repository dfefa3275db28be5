"""Hinton's loss without the student's temperature: the student's own probabilities match the softened teacher's.

    T * KL(teacher_T || student)

Up to a constant it is Hinton's loss minus T * (T - 1) times the Rényi entropy of order 1/T of the student's
probabilities, which penalises a student that is too sure.

Source: Zheng and Yang, "Knowledge distillation based on transformed teacher matching", 2024, arXiv:2402.11148,
equations 15 to 19. There labels have the weight 1 and the divergence the weight beta. The factor T is that of
their equation 19, beta = T * alpha / (1 - alpha), with which alpha weighs the same as in Hinton's loss. They choose T
and beta for each pair, such as T = 10 and beta = 45 for VGG-13 and VGG-8 on CIFAR-100: alpha = 0.82. Their weighted
variant (WTTM) is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.soft import SoftLoss, divergence

if TYPE_CHECKING:
    from torch import Tensor


def ttm(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    return temperature * divergence((teacher_logits / temperature).log_softmax(1), student_logits.log_softmax(1))


LOSS = SoftLoss("ttm", ttm)
