"""The teacher's relations instead of its exact probabilities: what is more probable than what.

    T^2 * (inter + gamma * intra)
    inter = 1 - Pearson correlation of teacher's and student's probabilities of all classes, the mean over images
    intra = 1 - Pearson correlation of their probabilities of a class over the images of a batch, the mean over classes

The probabilities are softmax of the logits divided by T. Both parts are blind to any scale and shift of the student's
probabilities. The second depends on which images form a batch; with `accumulate`, that is each batch by itself.

Source: Huang et al., "Knowledge distillation from a stronger teacher", 2022, arXiv:2205.10536, section 4; the
factor T^2 is their code's. There labels have the weight 1 and both parts the weight 2: gamma = 1 and alpha = 2/3, at a
third of the size, with T = 4 on CIFAR-100 and T = 1 on ImageNet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.soft import TEMPERATURE, Parameter, SoftLoss

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = Parameter("dist_gamma", 1.0, 0, 1000, "dist: weight of the relations between images, beside those of classes")
LEAST_SQUARES = 1e-16  # of probabilities that are all alike: their correlation and its gradient are then 0, not NaN


def dist(student_logits: Tensor, teacher_logits: Tensor, temperature: float, dist_gamma: float) -> Tensor:
    """The loss of logits (N, C), a scalar."""
    student, teacher = ((logits / temperature).softmax(1) for logits in (student_logits, teacher_logits))
    inter, intra = ((1 - correlation(student, teacher, axis)).mean() for axis in (1, 0))
    return temperature**2 * (inter + dist_gamma * intra)


def correlation(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Pearson's correlations of two tensors (N, C) along an axis."""
    student, teacher = (one - one.mean(axis, keepdim=True) for one in (student, teacher))
    squares = student.square().sum(axis), teacher.square().sum(axis)
    lengths = [one.clamp_min(LEAST_SQUARES).sqrt() for one in squares]
    return (student * teacher).sum(axis) / (lengths[0] * lengths[1])


LOSS = SoftLoss("dist", dist, parameters=(TEMPERATURE, GAMMA))
