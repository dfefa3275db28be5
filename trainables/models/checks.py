"""Whether a model can be built and takes the images, found out on torch's meta device, without memory for weights."""

import contextlib
import difflib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from kdstudy.trainables import functions
from kdstudy.trainables.functions import is_function
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models.building import build, chosen_normalisation, create, create_arguments
from kdstudy.trainables.models.classifier import logits_and_features
from kdstudy.trainables.models.head import head_names
from kdstudy.trainables.settings import DROP_ARGUMENTS, ModelSettings

# Far beyond timm's largest. More is a typing error, and takes memory even on the meta device.
MOST_TENSORS, MOST_PARAMETERS = 10_000, 20_000_000_000
LONGEST_SHOWN = 200  # characters of arguments in a message


def check(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> None:
    """Raises ValueError if the model cannot be built, does not take the images, or does not return one logit per class.

    The message is one line and begins with the key that is wrong: `model`, `args`, `image_size`, `mean` or `std`.
    """
    _check_name(settings.model)
    chosen_normalisation(settings, channels)
    for name in {"num_classes", "in_chans"} & settings.args.keys():
        raise ValueError(f"args must not hold {name}: the data determine it")
    net = _build_without_weights(settings, create_arguments(settings, classes=classes, channels=channels,
                                                            image_size=image_size))
    size = settings.image_size or image_size
    _check_patch_size(net, settings, size)
    logits, shape = _forward(net, settings, channels, size)
    if shape != (2, classes):
        returned = f"logits of the shape {shape}" if shape else f"a {type(logits).__name__}"
        raise ValueError(f"model = {settings.model!r} returns {returned} for 2 images and {classes} classes, not "
                         f"(2, {classes}); a model must return one logit per class")


def check_recipe(settings: ModelSettings, wanted: dict[str, str], *, classes: int, channels: int,
                 image_size: int) -> None:
    """Raises ValueError if the model cannot be trained with some settings.

    wanted: the training settings that are set, each with its name in the study file. The message is one line and begins
    with `model` or `args`.
    """
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    net, shown = _build_without_weights(settings, arguments), f"model = {settings.model!r}"
    for name in ("head_lr", "freeze"):
        if name in wanted and not head_names(net):
            raise ValueError(f"{shown} does not tell which layer is its head, which {wanted[name]} needs to know; give "
                             f"the model a method get_classifier that returns it, or remove {wanted[name]}")
    if "layer_decay" in wanted and not hasattr(net, "group_matcher"):
        raise ValueError(f"{shown} does not tell the order of its layers, as most of timm's do with a method "
                         f"group_matcher; give it one, or remove {wanted['layer_decay']}")
    for name, argument in DROP_ARGUMENTS.items():
        if name in wanted:
            _check_drop_rate(settings, arguments, argument, wanted[name], set(net.state_dict()))


def feature_width(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> int:
    """How many pooled features a model has, which `Classifier.with_features` returns beside its logits.

    Raises ValueError, one line that begins with `model`, if it does not give them away.
    """
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    net, size = _build_without_weights(settings, arguments).eval(), settings.image_size or image_size
    try:
        with torch.no_grad():
            logits, features = logits_and_features(net, torch.zeros(2, channels, size, size, device="meta"))
        if (tuple(logits.shape), features.ndim, len(features)) == ((2, classes), 2, 2):
            return features.shape[1]
        reason = f"they return {tuple(features.shape)} and logits {tuple(logits.shape)} for 2 images"
    except Exception as error:
        reason = one_line(error)
    raise ValueError(f"model = {settings.model!r} does not give its pooled features away, as most of timm's do with "
                     f"forward_features and forward_head(…, pre_logits=True): {reason}") from None


def check_distillation_head(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> None:
    """Raises ValueError, one line that begins with `model`, if a model has no second head for distillation."""
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    if not hasattr(_build_without_weights(settings, arguments), "set_distilled_training"):
        raise ValueError(f"model = {settings.model!r} has no distillation token with a head of its own, as timm's "
                         "deit_*_distilled_* have")


def _check_drop_rate(settings: ModelSettings, arguments: dict[str, Any], argument: str, wanted: str,
                     weights: set[str]) -> None:
    if argument in settings.args:
        raise ValueError(f"args holds {argument}, which {wanted} sets too; remove one of the two")
    try:
        with torch.device("meta"):
            dropping = create(settings.model, **arguments, **{argument: 0.1})
    except Exception:
        raise ValueError(f"model = {settings.model!r} takes no {argument}, which {wanted} sets; remove {wanted}"
                         ) from None
    if set(dropping.state_dict()) != weights:
        raise ValueError(f"model = {settings.model!r} has other weights with {argument} than without, so {wanted} "
                         f"cannot be a setting of its training; set {argument} in args instead")


def _check_name(name: str) -> None:
    if is_function(name):
        functions.load(name)
        return
    if timm.is_model(name.split(".")[0]) and (("." not in name) or name in _tagged_names()):
        return
    nearest = difflib.get_close_matches(name, _tagged_names() + timm.list_models(), n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "; see timm.list_models()"
    raise ValueError(f"model = {name!r} is not a timm model{hint}")


@lru_cache
def _tagged_names() -> list[str]:
    return timm.list_models(pretrained=True)


def _build_without_weights(settings: ModelSettings, arguments: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"), _limited_size():
            net = create(settings.model, **arguments)
    except Exception as error:
        raise ValueError(f"args{_shown(settings.args)} do not suit {settings.model}: {one_line(error)}") from None
    if not isinstance(net, nn.Module):
        raise ValueError(f"model = {settings.model!r} returns a {type(net).__name__}, not a torch.nn.Module")
    return net


@contextlib.contextmanager
def _limited_size() -> Iterator[None]:
    """Raises ValueError as soon as a model that is being built becomes larger than any real one."""
    tensors = parameters = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, parameters
        tensors, parameters = tensors + 1, parameters + (0 if parameter is None else parameter.numel())
        if tensors > MOST_TENSORS or parameters > MOST_PARAMETERS:
            raise ValueError(f"the model would have more than {MOST_TENSORS:,} weight tensors or {MOST_PARAMETERS:,} "
                             "parameters")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_patch_size(net: nn.Module, settings: ModelSettings, size: int) -> None:
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    if patch and size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise ValueError(f"image_size = {size} is not a multiple of {settings.model}'s patch size {patch}; "
                         f"use {nearest}, or another patch_size in args")


def _forward(net: nn.Module, settings: ModelSettings, channels: int, size: int) -> tuple[Any, tuple[int, ...]]:
    """What a model returns for two images, which may be anything if a function made it, and its shape, () if none."""
    try:
        with torch.no_grad():
            returned = net.eval()(torch.zeros(2, channels, size, size, device="meta"))
            return returned, tuple(getattr(returned, "shape", ()))
    except Exception as error:
        given = f" with args{_shown(settings.args)}" if settings.args else ""
        raise ValueError(f"image_size = {size} does not suit {settings.model}{given}: {one_line(error)}") from None


def _shown(arguments: dict[str, Any]) -> str:
    text = repr(arguments)
    return f" = {text}" if len(text) <= LONGEST_SHOWN else ""


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raises ValueError if images of so many channels cannot be normalised with these."""
    if {len(mean), len(std)} != {channels}:
        raise ValueError(f"its mean and std have {len(mean)} and {len(std)} channels, but the images have {channels}")
    if not (all(map(math.isfinite, [*mean, *std])) and min(std) > 0):
        raise ValueError("its mean and std must be finite, and its std larger than 0")


def check_weights(settings: ModelSettings, weights: dict[str, np.ndarray], *, classes: int, channels: int,
                  image_size: int) -> None:
    """Raises ValueError unless `weights` is a model's whole state_dict: all its tensors, in their shapes, no others."""
    with torch.device("meta"):
        own = build(settings, classes=classes, channels=channels, image_size=image_size).net.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    given = {name: array.shape for name, array in weights.items()}
    wrong = [name for name in {**shapes, **given} if shapes.get(name) != given.get(name)]
    if wrong:
        raise ValueError(f"its weights do not fit a {settings.model} for images of {channels} channels: "
                         f"{wrong[0]} is {given.get(wrong[0], 'missing')}, not {shapes.get(wrong[0], 'known')}")
