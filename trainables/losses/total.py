"""The whole loss of a batch, as pure functions.

    loss = (1 - alpha) * CE(student, label) + alpha * soft loss

`alpha` is the weight of the SOFT loss, which is one of those listed in `kdstudy.trainables.losses`. Mostly it compares
the logits of student and teacher, but a loss may read something else, such as their features.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kdstudy.trainables.losses.soft import Labels, SoftLoss


class Loss(NamedTuple):
    """A batch's loss and its parts, all scalars."""

    total: torch.Tensor
    hard: torch.Tensor  # cross-entropy with the labels, smoothed where the settings say so
    soft: torch.Tensor | None  # None if the teacher has no part in the loss


def hard_loss(student_logits: torch.Tensor, labels: torch.Tensor, partner_labels: torch.Tensor | None = None,
              partner_weight: torch.Tensor | None = None, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of logits (B, C) with labels (B,), a scalar in fp32.

    With mixup, partner_labels (B,) int64 and partner_weight (B,): each image's cross-entropy is (1 - w) times that with
    its own label plus w times that with its partner's. label_smoothing: the share of the target that is spread evenly
    over all C classes, as in torch's cross_entropy and timm's mixup_target (Szegedy et al., 2016, arXiv:1512.00567).
    """
    log_probabilities = F.log_softmax(student_logits.float(), dim=1)
    loss = _cross_entropy(log_probabilities, labels, partner_labels, partner_weight)
    return loss if label_smoothing == 0 else torch.lerp(loss, -log_probabilities.mean(), label_smoothing)


def _cross_entropy(log_probabilities: torch.Tensor, labels: torch.Tensor, partner_labels: torch.Tensor | None,
                   partner_weight: torch.Tensor | None) -> torch.Tensor:
    if partner_labels is None:
        return F.nll_loss(log_probabilities, labels)
    own = F.nll_loss(log_probabilities, labels, reduction="none")
    partner = F.nll_loss(log_probabilities, partner_labels, reduction="none")
    return torch.lerp(own, partner, partner_weight).mean()


def distillation_loss(student_logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None, *,
                      alpha: float, loss: SoftLoss, parameters: Mapping[str, float],
                      partner_labels: torch.Tensor | None = None, partner_weight: torch.Tensor | None = None,
                      label_smoothing: float = 0.0, unlabelled_logits: torch.Tensor | None = None,
                      compared: torch.Tensor | None = None) -> Loss:
    """The distillation loss of logits (B, C). With alpha = 0 it is the hard loss, bit for bit, even with a teacher.

    teacher: what the soft loss reads of the teacher, logits (B, C) or features (B, D). parameters: of the soft loss.
    labels, partner_labels, partner_weight, label_smoothing: as in `hard_loss`.
    unlabelled_logits: the student's logits (U, C) for images that only the soft loss uses; the teacher's are then
    (B + U, ...). compared: what the soft loss reads of the student if it is not these logits, of the teacher's shape.
    Raises ValueError if alpha > 0 without teacher logits.
    """
    hard = hard_loss(student_logits, labels, partner_labels, partner_weight, label_smoothing)
    if alpha == 0:
        return Loss(hard, hard, None)
    if teacher is None:
        raise ValueError(f"alpha = {alpha} needs teacher logits")
    known = Labels(labels, partner_labels, partner_weight)
    if unlabelled_logits is not None:
        student_logits = torch.cat([student_logits, unlabelled_logits])
        known = _with_decisions(known, teacher[len(labels):]) if loss.takes_labels else known
    soft = loss(student_logits if compared is None else compared, teacher, known, parameters)
    return Loss((1 - alpha) * hard + alpha * soft, hard, soft)


def _with_decisions(labels: Labels, teacher_logits: torch.Tensor) -> Labels:
    """The labels of all images, where for those without labels the teacher's decision takes their place."""
    decided = teacher_logits.argmax(1)
    if labels.partner is None:
        return Labels(torch.cat([labels.own, decided]))
    weight = torch.cat([labels.weight, labels.weight.new_zeros(len(decided))])
    return Labels(torch.cat([labels.own, decided]), torch.cat([labels.partner, decided]), weight)
