"""The distillation loss, as pure functions.

loss = (1 - alpha) * CE(student, label) + alpha * T^2 * KL(teacher_T || student_T)

after Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015: the soft targets are softened by
the temperature T, and T^2 keeps the size of their gradient independent of T. `alpha` is the weight of the SOFT term.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Loss(NamedTuple):
    total: torch.Tensor  # scalar
    hard: torch.Tensor  # scalar: cross-entropy with the labels
    soft: torch.Tensor | None  # scalar: T^2 * KL, None where there is no teacher in the loss


def hard_loss(student_logits: torch.Tensor, labels: torch.Tensor, partner_labels: torch.Tensor | None = None,
              partner_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy of logits (B, C) with labels (B,), in fp32.

    Under mixup: each image's cross-entropy is (1 - w) times that of its label plus w times that of its partner's.
    """
    log_probabilities = F.log_softmax(student_logits.float(), dim=1)
    if partner_labels is None:
        return F.nll_loss(log_probabilities, labels)
    own = F.nll_loss(log_probabilities, labels, reduction="none")
    partner = F.nll_loss(log_probabilities, partner_labels, reduction="none")
    return torch.lerp(own, partner, partner_weight).mean()


def soft_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student), mean over the batch, of logits (B, C), in fp32 whatever the logits come in."""
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distillation_loss(student_logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None, *,
                      temperature: float, alpha: float, partner_labels: torch.Tensor | None = None,
                      partner_weight: torch.Tensor | None = None,
                      unlabelled_logits: torch.Tensor | None = None) -> Loss:
    """The distillation loss of logits (B, C). At alpha = 0 it is the hard loss bit for bit, teacher or not.

    unlabelled_logits: (U, C) of images that count in the soft loss alone; teacher_logits then are (B + U, C).
    Raises ValueError where alpha > 0 and there are no teacher logits.
    """
    hard = hard_loss(student_logits, labels, partner_labels, partner_weight)
    if alpha == 0:
        return Loss(hard, hard, None)
    if teacher_logits is None:
        raise ValueError(f"alpha = {alpha} needs teacher logits")
    if unlabelled_logits is not None:
        student_logits = torch.cat([student_logits, unlabelled_logits])
    soft = soft_loss(student_logits, teacher_logits, temperature)
    return Loss((1 - alpha) * hard + alpha * soft, hard, soft)
