"""The distillation loss, as pure functions.

    loss = (1 - alpha) * CE(student, label) + alpha * T^2 * KL(teacher_T || student_T)

Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, arXiv:1503.02531, section 2.
The index T marks softmax of the logits divided by the temperature T. The factor T^2 keeps the size of the soft
gradient independent of T. `alpha` is the weight of the SOFT term.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Loss(NamedTuple):
    """A batch's loss and its parts, all scalars."""

    total: torch.Tensor
    hard: torch.Tensor  # cross-entropy with the labels, smoothed where the settings say so
    soft: torch.Tensor | None  # T^2 * KL; None if the teacher has no part in the loss


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


def soft_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) of logits (B, C), the mean over the batch: a scalar in fp32, whatever the logits'
    precision."""
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distillation_loss(student_logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None, *,
                      temperature: float, alpha: float, partner_labels: torch.Tensor | None = None,
                      partner_weight: torch.Tensor | None = None, label_smoothing: float = 0.0,
                      unlabelled_logits: torch.Tensor | None = None) -> Loss:
    """The distillation loss of logits (B, C). With alpha = 0 it is the hard loss, bit for bit, even with a teacher.

    labels, partner_labels, partner_weight, label_smoothing: as in `hard_loss`. unlabelled_logits: the student's logits
    (U, C) for images that only the soft loss uses; teacher_logits are then (B + U, C), otherwise (B, C). Raises
    ValueError if alpha > 0 without teacher logits.
    """
    hard = hard_loss(student_logits, labels, partner_labels, partner_weight, label_smoothing)
    if alpha == 0:
        return Loss(hard, hard, None)
    if teacher_logits is None:
        raise ValueError(f"alpha = {alpha} needs teacher logits")
    if unlabelled_logits is not None:
        student_logits = torch.cat([student_logits, unlabelled_logits])
    soft = soft_loss(student_logits, teacher_logits, temperature)
    return Loss((1 - alpha) * hard + alpha * soft, hard, soft)
