"""What a soft loss is: its function, what it reads of student and teacher, and the parameters that it has.

Neither this nor the losses' files import torch, so that settings and searches can read which parameters a loss has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


# What a loss reads. Of the student and of the teacher:
LOGITS = "logits"  # logits (N, C) and logits (N, C)
FEATURES = "features"  # pooled features in front of the head, projected (N, D), and those of the teacher (N, D)
TOKEN = "token"  # logits (N, C) of the head of a distillation token, and logits (N, C)


@dataclass(frozen=True)
class Parameter:
    """A number that a loss takes, by the name of its setting. low, high: its bounds, both allowed."""

    name: str
    default: float
    low: float
    high: float
    description: str


TEMPERATURE = Parameter("temperature", 4.0, 0.01, 10_000, "T, which softens teacher and student in the soft loss")


class Labels(NamedTuple):
    """The labels (N,) int64 of a batch and, under mixup and CutMix, those of the partners with their weights (N,)."""

    own: Tensor
    partner: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class SoftLoss:
    """A loss between student and teacher, the mean over a batch.

    function: takes what it reads of student and teacher in fp32, `Labels` if takes_labels, and the parameters by name;
    returns a scalar. reads: LOGITS, FEATURES or TOKEN.
    """

    name: str
    function: Callable[..., Tensor]
    parameters: tuple[Parameter, ...] = (TEMPERATURE,)
    takes_labels: bool = False
    reads: str = LOGITS

    def __post_init__(self) -> None:
        if self.takes_labels and self.reads == FEATURES:
            raise ValueError(f"{self.name} cannot take labels: those of images without labels are the teacher's "
                             "decisions, which its features do not tell")

    def __call__(self, student: Tensor, teacher: Tensor, labels: Labels, values: Mapping[str, float]) -> Tensor:
        """The loss of what it reads (N, C or D) in any precision, a scalar in fp32. values: at least those of its
        parameters."""
        own = {parameter.name: values[parameter.name] for parameter in self.parameters}
        also = (labels,) if self.takes_labels else ()
        return self.function(student.float(), teacher.float(), *also, **own)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities (N, C), the mean over the N rows."""
    return (teacher.exp() * (teacher - student)).sum() / len(student)
