"""Weights to start training from: timm's, from its hub, or those in a local file."""

import contextlib
import io
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session
from torch import nn

from kdstudy.trainables.functions import is_function
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models.building import create, create_arguments
from kdstudy.trainables.models.checkpoint import RefusedError, read_state, unwrapped
from kdstudy.trainables.settings import ModelSettings

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_SECONDS = 5.0
LOCAL_FILE = "give a local file instead, pretrained = \"weights.safetensors\", or false for random weights"
FITTING = 0.5  # share of its tensors that a function's model must find in a file


def pretrained_weights(settings: ModelSettings, *, classes: int, channels: int,
                       image_size: int) -> dict[str, np.ndarray] | None:
    """The weights to start from, by timm's names and without the head's; None if `pretrained` is false.

    timm adapts them to the image size and the number of channels. Raises ValueError, in one line that begins with
    `pretrained`, if they cannot be downloaded or do not fit the model.
    """
    if not settings.pretrained:
        return None
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    shown = "true" if settings.pretrained is True else repr(settings.pretrained)
    none = f"pretrained = {shown}: no weights for {settings.model}"
    try:
        state = read_state(settings.pretrained).weights if isinstance(settings.pretrained, str) else None
        if is_function(settings.model):
            return _fitting(create(settings.model, **arguments), state)
        return _adapted(settings.model, arguments, state)
    except RefusedError as error:
        raise ValueError(f"{none}: {error}") from None
    except Exception as error:
        remedy = LOCAL_FILE if settings.pretrained is True else f"the file must hold weights of {settings.model}"
        raise ValueError(f"{none} ({one_line(error)}); {remedy}") from None


def check_hub(settings: ModelSettings) -> None:
    """Check that timm's weights for a model, if they are wanted, are in a cache here or that their hub answers.

    Raises ValueError, in one line that begins with `pretrained`, where neither is so. The download itself would try for
    a minute.
    """
    if settings.pretrained is not True or is_function(settings.model):
        return
    repository = timm.get_pretrained_cfg(settings.model).hf_hub_id
    if repository is None or any(isinstance(try_to_load_from_cache(repository, name), str) for name in HUB_FILES):
        return
    try:
        if constants.HF_HUB_OFFLINE:
            raise ValueError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)  # any response will do
    except Exception as error:  # of many kinds
        raise ValueError(f"pretrained = true: no weights for {settings.model}: their hub does not answer "
                         f"({one_line(error)[:120]}); {LOCAL_FILE}") from None


def _fitting(net: nn.Module, state: dict[str, torch.Tensor] | None) -> dict[str, np.ndarray]:
    """The weights of a file that a function's model has too, in the same shape."""
    if state is None:
        raise ValueError("there is no hub for a function's model")
    own = {unwrapped(name): (name, value.shape) for name, value in net.state_dict().items()}
    fitting = {own[name][0]: value for name, value in state.items() if name in own and own[name][1] == value.shape}
    if len(fitting) < FITTING * len(own):
        raise ValueError(f"{len(fitting)} of {len(own)} tensors fit")
    return {name: value.numpy() for name, value in fitting.items()}


def _adapted(model: str, arguments: dict[str, Any], state: dict[str, torch.Tensor] | None) -> dict[str, np.ndarray]:
    """timm's weights, or those of a file (state), as timm loads them into the model."""
    # With another number of classes than the weights have, timm leaves the head out, whatever the data have.
    arguments = arguments | {"num_classes": timm.get_pretrained_cfg(model).num_classes + 1}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars would tear the display
        weights = _without_head(_load(model, arguments, state, seed=0))
    if state is not None:
        # timm leaves what the file lacks as it was, random: with another seed it has other values.
        again = _without_head(_load(model, arguments, state, seed=1))
        absent = [name for name, array in weights.items() if not np.array_equal(array, again[name])]
        if absent:
            raise ValueError(f"{len(absent)} of {len(weights)} tensors are not in it, such as {absent[0]}")
    return weights


def _load(model: str, arguments: dict[str, Any], state: dict[str, torch.Tensor] | None, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # A copy, because timm changes the state_dict that it is given.
    overlay = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": dict(state), "custom_load": False}}
    return timm.create_model(model, pretrained=True, **overlay, **arguments)


def _without_head(net: nn.Module) -> dict[str, np.ndarray]:
    heads = net.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()
            if name.rsplit(".", 1)[0] not in heads}
