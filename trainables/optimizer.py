"""Optimizer and learning-rate schedule, and the optimizer's state as plain tensors and numbers."""

import json
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models import Classifier, head_names
from kdstudy.trainables.settings import TrainSettings

# timm creates torch's own optimizers under these names; they have a fused kernel: one call per step, not per tensor.
FUSED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")


def make_optimizer(model: Classifier, settings: TrainSettings, lr: float,
                   beside: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer that the settings name, for all weights of a model that require gradients.

    beside: a layer that learns along with it, at the learning rate itself, such as a projection.
    """
    fused = {"fused": True} if settings.optimizer.lower() in FUSED_OPTIMIZERS else {}
    further = param_groups_weight_decay(beside, weight_decay=settings.weight_decay) if beside is not None else []
    own_groups = settings.layer_decay != 1 or settings.head_lr != 1 or further

    def groups(net: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(net, settings) + further

    return create_optimizer_v2(model.net, settings.optimizer, lr=lr, weight_decay=settings.weight_decay,
                               param_group_fn=groups if own_groups else None, **fused)


def parameter_groups(net: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """timm's groups of the parameters that require gradients, the head's apart if it has a learning rate of its own.

    A group's `lr_scale` is what timm's schedulers multiply its learning rate by.
    """
    decayed = {"weight_decay": settings.weight_decay,
               "no_weight_decay_list": getattr(net, "no_weight_decay", frozenset)()}
    if settings.layer_decay != 1:
        groups = param_groups_layer_decay(net, layer_decay=settings.layer_decay, **decayed)
    else:
        groups = param_groups_weight_decay(net, **decayed)
    if settings.head_lr == 1:
        return groups
    names = head_names(net)
    head = {id(parameter) for name, parameter in net.named_parameters() if name in names}
    return [part for group in groups for part in _with_head_apart(group, head, settings.head_lr)]


def _with_head_apart(group: dict[str, Any], head: set[int], factor: float) -> list[dict[str, Any]]:
    """The group without the head's parameters (by id), and a group of these alone; either only if it is not empty."""
    body = [parameter for parameter in group["params"] if id(parameter) not in head]
    own = [parameter for parameter in group["params"] if id(parameter) in head]
    parts = [group | {"params": body}, group | {"params": own, "lr_scale": factor * group.get("lr_scale", 1.0)}]
    return [part for part in parts if part["params"]]


def make_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> CosineLRScheduler:
    """Linear warm-up, then cosine to `min_lr` over all epochs of `steps` updates each, even if the run is stopped
    earlier."""
    epochs = settings.warmup * settings.epochs if settings.warmup_epochs is None else settings.warmup_epochs
    warmup = round(epochs * steps)
    return CosineLRScheduler(optimizer, t_initial=max(2, settings.epochs * steps - warmup), lr_min=settings.min_lr,
                             warmup_t=warmup, warmup_prefix=True, t_in_epochs=False)


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """The schedule's learning rate at the last update, before `layer_decay` and `head_lr`."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


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
