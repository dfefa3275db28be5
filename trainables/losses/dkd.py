"""Hinton's loss in two parts with weights of their own: how sure of the label, and which other classes are similar.

    T^2 * (TCKD + beta * NCKD)
    TCKD = KL over two classes, the label and all others together
    NCKD = KL over the other classes alone, as if the label did not exist

Hinton's loss is T^2 * (TCKD + (1 - p) * NCKD), where p is the teacher's probability of the label: where the teacher is
sure, it hardly says anything about the other classes. Here their weight is beta for every image.

Under mixup and CutMix an image's loss is that with its own label and that with its partner's, mixed like the labels.
Of images without labels, the class is the teacher's decision.

Source: Zhao et al., "Decoupled knowledge distillation", 2022, arXiv:2203.08679, equations 6 and 7. There labels
and TCKD have the weight 1, which is alpha = 1/2 at half the size, and beta depends on the models: 8 for ResNet-32x4 and
ResNet-8x4 on CIFAR-100 with T = 4, 0.5 for ResNet-34 and ResNet-18 on ImageNet with T = 1. The warm-up of this loss in
their code is not part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.soft import TEMPERATURE, Labels, Parameter, SoftLoss

if TYPE_CHECKING:
    from torch import Tensor

BETA = Parameter("dkd_beta", 8.0, 0, 1000, "dkd: weight of the part about the classes that are not the label")


def dkd(student_logits: Tensor, teacher_logits: Tensor, labels: Labels, temperature: float, dkd_beta: float) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    student, teacher = student_logits / temperature, teacher_logits / temperature
    each = _of_images(student, teacher, labels.own, dkd_beta)
    if labels.partner is not None:
        each = each.lerp(_of_images(student, teacher, labels.partner, dkd_beta), labels.weight)
    return temperature**2 * each.mean()


def _of_images(student: Tensor, teacher: Tensor, labels: Tensor, beta: float) -> Tensor:
    """TCKD + beta * NCKD (N,) of logits (N, C) that the temperature has divided, for labels (N,)."""
    target, nckd = parts(student, teacher, labels)
    return target + beta * nckd


def parts(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD (N,) and NCKD (N,), in logarithms throughout: a sure teacher's 1 - p would be rounded to 0."""
    is_label = student.new_zeros(student.shape).scatter(1, labels[:, None], 1).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The log-probabilities of the label (N,) and of all others together (N,), and of each other one (N, C)."""
        others = logits.masked_fill(is_label, -float("inf"))
        known = logits.log_softmax(1)
        rest = known.masked_fill(is_label, -float("inf")).logsumexp(1)
        return known.gather(1, labels[:, None])[:, 0], rest, others.log_softmax(1).masked_fill(is_label, 0)

    (own, own_rest, own_others), (their, their_rest, their_others) = split(student), split(teacher)
    tckd = their.exp() * (their - own) + their_rest.exp() * (their_rest - own_rest)
    each = their_others.exp().masked_fill(is_label, 0) * (their_others - own_others)
    return tckd, each.sum(1)


LOSS = SoftLoss("dkd", dkd, parameters=(TEMPERATURE, BETA), takes_labels=True)
