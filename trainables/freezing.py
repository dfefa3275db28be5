"""What does not learn while only a model's head is trained: the other weights, and the statistics of normalisation."""

import torch
from torch import nn

from kdstudy.trainables.models import head_names


def body_parameters(net: nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that learn, without those of the head. Raises ValueError if the model does not tell its head."""
    head = head_names(net)
    if not head:
        raise ValueError("the model's head cannot be found; give the model a method get_classifier that returns it")
    return [parameter for name, parameter in net.named_parameters() if parameter.requires_grad and name not in head]


def hold_statistics(net: nn.Module) -> None:
    """Let batch norm outside the head use its running statistics, and not change them, until `net.train()` is called.

    Dropout and stochastic depth go on, as in timm's `freeze`.
    """
    head = head_names(net)
    for name, module in net.named_modules():
        buffers = [buffer for buffer, _ in module.named_buffers(recurse=False)]
        if any(buffer.startswith("running_") for buffer in buffers) and f"{name}.weight" not in head:
            module.eval()
