"""The squared difference of features: what student and teacher each make of an image before the head decides.

    mean over images and features of (P(student) - teacher)^2

Features are what enters a model's head, pooled over all positions: in timm forward_head(..., pre_logits=True). P is a
linear layer from the student's width to the teacher's that learns along with the student and is left behind; without
it where both are equally wide. Several models of a teacher have their features side by side.

Unlike the losses of logits it teaches the head nothing: at alpha = 1 the student never learns to classify. Its size is
that of the teacher's features, whatever that is, and so is its weight beside the labels: search alpha.

Source: timm's FeatureDistillationTask, whose weights are 1 and 1 unless given: alpha = 1/2 at half the size. A learned
regressor is also that of Romero et al., "FitNets: hints for thin deep nets", 2015, arXiv:1412.6550, equation 3, there
a convolution and for a layer in the middle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdstudy.trainables.losses.mse import mse
from kdstudy.trainables.losses.soft import FEATURES, SoftLoss

if TYPE_CHECKING:
    from torch import Tensor


def features(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The loss of features (N, D), a scalar."""
    return mse(student_features, teacher_features)


LOSS = SoftLoss("features", features, parameters=(), reads=FEATURES)
