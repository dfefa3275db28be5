"""Optimizer and learning-rate schedule, and the optimizer's state as plain tensors and numbers."""

import json
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.settings import TrainSettings

# timm creates torch's own optimizers under these names; they have a fused kernel: one call per step, not per tensor.
FUSED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")


def make_optimizer(model: Classifier, settings: TrainSettings, lr: float) -> torch.optim.Optimizer:
    """The optimizer that the settings name, for all weights of a model."""
    fused = {"fused": True} if settings.optimizer.lower() in FUSED_OPTIMIZERS else {}
    return create_optimizer_v2(model.net, settings.optimizer, lr=lr, weight_decay=settings.weight_decay, **fused)


def make_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> CosineLRScheduler:
    """Linear warm-up, then cosine to zero over all epochs of `steps` updates each, even if the run is stopped earlier.
    """
    warmup = round(settings.warmup * settings.epochs * steps)
    return CosineLRScheduler(optimizer, t_initial=max(2, settings.epochs * steps - warmup), warmup_t=warmup,
                             warmup_prefix=True, t_in_epochs=False)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state and settings as named tensors and, for the rest, JSON values.

    Settings that are neither, such as a dtype, are left out: a new optimizer brings them along.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    entries = [(f"state.{parameter}", values) for parameter, values in state["state"].items()]
    entries += [(f"group.{index}", group) for index, group in enumerate(state["param_groups"])]
    for prefix, values in entries:
        for name, value in values.items():
            if torch.is_tensor(value):
                tensors[f"{prefix}.{name}"] = value.contiguous()
            elif name != "params" and isinstance(value, (bool, int, float, str, list, tuple, type(None))):
                scalars[f"{prefix}.{name}"] = value
    return tensors, scalars


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor],
                      scalars: dict[str, Any]) -> None:
    """Give an optimizer, new and for the same model, the state that `optimizer_state` returned."""
    state = optimizer.state_dict()
    values: dict[int, dict] = {}
    for key, value in {**tensors, **scalars}.items():
        kind, number, name = key.split(".", 2)
        target = values.setdefault(int(number), {}) if kind == "state" else state["param_groups"][int(number)]
        target[name] = tuple(value) if isinstance(value, list) else value
    optimizer.load_state_dict({"state": values, "param_groups": state["param_groups"]})
    _align_memory_formats(optimizer)


def _align_memory_formats(optimizer: torch.optim.Optimizer) -> None:
    """Fused kernels walk raw memory, so moments must have their parameter's memory format, such as channels last."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_optimizer(name: str) -> None:
    """Raises ValueError, with the reason in one line, if an optimizer cannot take a step, be saved and be restored."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    try:
        optimizer = make_optimizer(Classifier(layers, (0.5,), (0.5,), 1), TrainSettings(optimizer=name), 1e-3)
        layers(torch.zeros(1, 1, 1, 1)).sum().backward()
        optimizer.step()
        tensors, scalars = optimizer_state(optimizer)
        json.dumps(scalars)
        restore_optimizer(optimizer, tensors, scalars)
    except Exception as error:
        raise ValueError(one_line(error)) from None
