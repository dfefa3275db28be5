"""Models from their settings, with weights that depend on a seed alone."""

import logging
import re
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from kdstudy.trainables import functions
from kdstudy.trainables.functions import is_function
from kdstudy.trainables.models.classifier import Classifier, wants_channels_last
from kdstudy.trainables.models.normalising import Normalisation, for_channels
from kdstudy.trainables.settings import ModelSettings

# timm logs how it maps weights at INFO, and a warning for every missing pretrained head.
logging.getLogger("timm").setLevel(logging.ERROR)
# We report a failed download once; this would report every retry.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
# Arguments of timm.create_model that are not the model's own. Some read weights that no fingerprint would cover.
NOT_OF_THE_MODEL = ("cache_dir", "checkpoint_path", "device", "dtype", "pretrained", "pretrained_cfg",
                    "pretrained_cfg_overlay", "pretrained_model_args")
# Names of modules that attend to other positions, and of modules that only weight channels or pool.
POSITIONS = re.compile("Attention|Attn|MHSA|GPSA")
CHANNELS = re.compile("Pool|SplitAttn|SelectiveKernel|ChannelAttn|SpatialAttn|Cbam|LightChannel|LightSpatial")


def build(settings: ModelSettings, *, classes: int, channels: int, image_size: int, seed: int = 0,
          weights: dict[str, np.ndarray] | None = None,
          normalised: Normalisation | None = None) -> Classifier:
    """Create a model whose random weights depend on `seed` alone.

    image_size: pixels of the stored images, for models whose settings name no size. weights: a state_dict that replaces
    the random weights, all of them or all but the head's. normalised: mean and std per channel, unless those of the
    settings, or else the model's own, are used.
    """
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    torch.manual_seed(seed)
    net = create(settings.model, **arguments)
    if weights is not None:
        net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=False)
    mean, std = normalised or chosen_normalisation(settings, channels) or normalisation(net, channels)
    return Classifier(net, mean, std, settings.image_size or image_size)


def create_arguments(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> dict[str, Any]:
    """The keyword arguments that create the model: those of the settings plus those that the data determine."""
    arguments = {"num_classes": classes, "in_chans": channels}
    config = None if is_function(settings.model) else timm.get_pretrained_cfg(settings.model)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = settings.image_size or image_size
    return arguments | settings.args


def create(name: str, **arguments: Any) -> nn.Module:
    """A bare model with random weights: timm's, or what the function package.module:function returns.

    Raises ValueError for an argument that does not belong to the model, and whatever timm or the function raises.
    """
    if is_function(name):
        return functions.load(name)(**arguments)
    for argument in sorted(arguments.keys() & set(NOT_OF_THE_MODEL)):
        raise ValueError(f"{argument} is not an argument of a model; to start from trained weights set pretrained")
    return timm.create_model(name, pretrained=False, **arguments)


def chosen_normalisation(settings: ModelSettings, channels: int) -> Normalisation | None:
    """The mean and std that the settings name, per channel; None if they name none.

    Raises ValueError, in one line that begins with `mean` or `std`, if they name another number of channels.
    """
    if settings.mean is None:
        return None
    mean, std = (_per_channel(name, getattr(settings, name), channels) for name in ("mean", "std"))
    return mean, std


def _per_channel(name: str, value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    values = value if isinstance(value, tuple) else (value,) * channels
    if len(values) != channels:
        raise ValueError(f"{name} = {list(values)} has {len(values)} numbers, but the images have {channels} channels; "
                         "one number alone holds for all")
    return values


def normalisation(net: nn.Module, channels: int) -> Normalisation:
    """The mean and std that a model expects, per channel: 0.5 if it names none; if it names other than `channels`
    values, their average for each channel."""
    config = getattr(net, "pretrained_cfg", None) or {}
    return for_channels(config.get("mean", (0.5,)), channels), for_channels(config.get("std", (0.5,)), channels)


def kind_of(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> tuple[str, str]:
    """A model's kind and the name of its class. The kind is `Transformer` if the model has attention between positions,
    `CNN` if it has convolutions instead, else `MLP`."""
    with torch.device("meta"):
        net = build(settings, classes=classes, channels=channels, image_size=image_size).net
    names = {type(module).__name__ for module in net.modules()}
    if any(POSITIONS.search(name) and not CHANNELS.search(name) for name in names):
        kind = "Transformer"
    else:
        kind = "CNN" if wants_channels_last(net) else "MLP"
    return kind, type(net).__name__
