"""What a soft loss reads of the student, besides its logits: how it is computed, and what learns along for it."""

import math

import torch
from torch import nn

from kdstudy.trainables.losses import FEATURES, LOGITS
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.seeds import derive_seed

Pair = tuple[torch.Tensor, torch.Tensor]


class FeatureReader(nn.Module):
    """Returns a student's logits (B, C) for images, and its features as wide as the teacher's (B, D).

    projection: a linear layer, the identity where both are equally wide, as in timm's FeatureDistillationTask. It is
    no part of the student.
    """

    def __init__(self, student: Classifier, projection: nn.Module):
        super().__init__()
        self.student, self.projection = student, projection

    def forward(self, images: torch.Tensor) -> Pair:
        logits, features = self.student.with_features(images)
        return logits, self.projection(features)


class TokenReader(nn.Module):
    """Returns the logits (B, C) of both heads of a student in training: the class token's, and the distillation's."""

    def __init__(self, student: Classifier):
        super().__init__()
        self.student = student
        student.net.set_distilled_training(True)  # in evaluation mode it goes on to return the mean of both

    def forward(self, images: torch.Tensor) -> Pair:
        return self.student(images)


def reader(student: Classifier, reads: str, teacher_features: int, seed: int) -> nn.Module:
    """The module that computes what a loss reads: the student itself if that is logits, else one that returns a pair.

    reads: as in `losses.soft`. teacher_features: their number if features are read. seed: the run's, from which the
    projection's weights derive.
    """
    if reads == LOGITS:
        return student
    if reads == FEATURES:
        own, device = student.feature_width(), student.shift.device
        return FeatureReader(student, make_projection(own, teacher_features, seed).to(device))
    return TokenReader(student)


def make_projection(student_features: int, teacher_features: int, seed: int) -> nn.Module:
    """A linear layer whose initial weights are torch's usual ones but drawn apart, so that no other draw changes."""
    if student_features == teacher_features:
        return nn.Identity()
    layer = nn.utils.skip_init(nn.Linear, student_features, teacher_features)
    generator = torch.Generator().manual_seed(derive_seed(seed, "projection"))
    limit = 1 / math.sqrt(student_features)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.uniform_(-limit, limit, generator=generator)
    return layer
