"""A loss of the user's own, package.module:function.

    function(student_logits, teacher_logits, labels, *, temperature)

It gets logits (N, C) in fp32 and labels (N,) int64, and returns the mean over the batch, a tensor without dimensions.
Under mixup and CutMix a label is that of the larger weight; of images without labels, it is the teacher's decision.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kdstudy.trainables import functions
from kdstudy.trainables.losses.soft import Labels, SoftLoss
from kdstudy.trainables.messages import one_line

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = 8  # of the trial batch


def own_loss(name: str) -> SoftLoss:
    """The loss that a function computes. Raises ValueError if it may not be called or cannot be imported."""
    return SoftLoss(name, partial(_checked, name, functions.load(name, "loss")), takes_labels=True)


def check_own(name: str, classes: int) -> None:
    """Call a function once, on random logits, and differentiate. Imports torch.

    Raises ValueError, one line that begins with `loss = `, if it may not be called, fails, or is no loss.
    """
    import torch

    loss = own_loss(name)
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(IMAGES, classes, generator=random) for _ in range(2))
    student.requires_grad_()
    try:
        value = loss(student, teacher, Labels(torch.arange(IMAGES) % classes), {"temperature": 4.0})
        (gradient,) = torch.autograd.grad(value, student) if value.requires_grad else (None,)
    except _NoLossError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        raise ValueError(f"loss = {name!r} failed on a batch of random logits: {one_line(error)}") from None
    if gradient is None:
        raise ValueError(f"loss = {name!r} does not depend on student_logits in a way that can be differentiated; "
                         "compute it with torch, without .item(), .detach() or NumPy")
    if not (value.isfinite() and gradient.isfinite().all()):
        raise ValueError(f"loss = {name!r} or its gradient is not finite for random logits: {value.item():g}")


class _NoLossError(ValueError):
    """What a function returned is not a loss."""


def _checked(name: str, function: Any, student_logits: Tensor, teacher_logits: Tensor, labels: Labels,
             temperature: float) -> Tensor:
    from torch import Tensor

    value = function(student_logits, teacher_logits, _of_larger_weight(labels), temperature=temperature)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        found = f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)[:60]
        raise _NoLossError(f"loss = {name!r} returned {found}; it must return the mean over the batch, a tensor "
                           "without dimensions, of floating point")
    return value.float()


def _of_larger_weight(labels: Labels) -> Tensor:
    return labels.own if labels.partner is None else labels.own.where(labels.weight <= 0.5, labels.partner)
