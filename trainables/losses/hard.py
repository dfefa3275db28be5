"""The teacher's decision as a second label.

    CE(student, argmax of the teacher)

Source: Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT), 2021,
arXiv:2012.12877, section 4. There alpha is 1/2, and the teacher's label is not smoothed. With their distillation token,
a second head for this loss, it is token-hard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.soft import SoftLoss

if TYPE_CHECKING:
    from torch import Tensor


def hard(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    decided = teacher_logits.argmax(1, keepdim=True)
    return -student_logits.log_softmax(1).gather(1, decided).mean()


LOSS = SoftLoss("hard", hard, parameters=())
