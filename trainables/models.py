"""timm models that take images in 0..1 and normalise for themselves."""

import contextlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import load_state_dict
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from kdstudy.trainables import functions
from kdstudy.trainables.functions import is_function
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import ModelSettings

# timm logs how it maps weights at INFO and warns of every missing pretrained head.
logging.getLogger("timm").setLevel(logging.ERROR)
# What cannot be fetched is said once, by us, not once per retry.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
# Arguments of timm.create_model that are not the model's own: some read weights that no fingerprint knows of.
NOT_OF_THE_MODEL = ("cache_dir", "checkpoint_path", "device", "dtype", "pretrained", "pretrained_cfg",
                    "pretrained_cfg_overlay", "pretrained_model_args")
# Far beyond timm's largest: what has more is a slip of the key, and takes memory even where its weights take none.
MOST_TENSORS, MOST_PARAMETERS = 10_000, 20_000_000_000
LONGEST_SHOWN = 200  # characters of arguments in a message


class Classifier(nn.Module):
    """A timm model behind its own normalisation.

    forward takes images (B, C, size, size) in 0..1 and returns logits (B, classes). `net` is the bare timm model,
    the only part that has weights.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: int):
        super().__init__()
        self.net, self.size = net, size
        self.mean, self.std = mean, std
        self.register_buffer("shift", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("divisor", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net((images - self.shift) / self.divisor)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())


def create_arguments(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> dict:
    """The keyword arguments for whatever creates the model: the study's own plus what the data decide."""
    arguments = {"num_classes": classes, "in_chans": channels}
    config = None if is_function(settings.model) else timm.get_pretrained_cfg(settings.model)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = settings.image_size or image_size
    return arguments | settings.args


def create(name: str, **arguments: Any) -> nn.Module:
    """A model with random weights: a timm model, or what the function package.module:function returns."""
    if is_function(name):
        return functions.load(name)(**arguments)
    for argument in sorted(arguments.keys() & set(NOT_OF_THE_MODEL)):
        raise ValueError(f"{argument} is no argument of a model; to begin with trained weights set pretrained")
    return timm.create_model(name, pretrained=False, **arguments)


@contextlib.contextmanager
def _within_reason() -> Iterator[None]:
    """Raise ValueError as soon as a model that is being built is larger than any."""
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


def build(settings: ModelSettings, *, classes: int, channels: int, image_size: int, seed: int = 0,
          weights: dict[str, np.ndarray] | None = None,
          normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None) -> Classifier:
    """Create a model with weights that depend on `seed` alone.

    image_size: pixels of the stored images, for models that do not name their own. weights: what replaces the random
    ones, all of them or all but the head's. normalised: mean and std, unless they are the model's own.
    """
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    torch.manual_seed(seed)
    net = create(settings.model, **arguments)
    if weights is not None:
        net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=False)
    mean, std = normalised or normalisation(net, channels)
    return Classifier(net, mean, std, settings.image_size or image_size)


def pretrained_weights(settings: ModelSettings, *, classes: int, channels: int,
                       image_size: int) -> dict[str, np.ndarray] | None:
    """The weights to begin with, without the head's, fitted by timm to image size and channels; None if there are none.

    From timm's hub or from a local file. Raises ValueError with one line that begins with `pretrained`.
    """
    if not settings.pretrained:
        return None
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    shown = "true" if settings.pretrained is True else repr(settings.pretrained)
    try:
        state = (_read_state(settings.pretrained) if isinstance(settings.pretrained, str) else None)
        if is_function(settings.model):
            return _fitting(create(settings.model, **arguments), state)
        config = timm.get_pretrained_cfg(settings.model)
        # With another number of classes than the weights have, timm leaves the head out, whatever the data have.
        arguments["num_classes"] = config.num_classes + 1
        overlay = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state, "custom_load": False}}
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars would tear the display
            net = _load(settings.model, overlay, arguments, seed=0)
        weights = _without_head(net)
        if state is not None:
            # timm takes what it knows and leaves the rest as it was: what was random before has not been loaded.
            again = _without_head(_load(settings.model, overlay, arguments, seed=1))
            absent = [name for name, array in weights.items() if not np.array_equal(array, again[name])]
            if absent:
                raise ValueError(f"{len(absent)} of {len(weights)} tensors are not in it, such as {absent[0]}")
    except Exception as error:
        remedy = ("give a local file instead, pretrained = \"weights.safetensors\", or false for random weights"
                  if settings.pretrained is True else f"the file must hold weights of {settings.model}")
        raise ValueError(f"pretrained = {shown}: no weights for {settings.model} ({one_line(error)[:120]}); "
                         f"{remedy}") from None
    return weights


def _load(name: str, overlay: dict, arguments: dict, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    overlay = {key: {**value, "state_dict": dict(value["state_dict"])} for key, value in overlay.items()}
    return timm.create_model(name, pretrained=True, **overlay, **arguments)


def _without_head(net: nn.Module) -> dict[str, np.ndarray]:
    heads = net.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()
            if name.rsplit(".", 1)[0] not in heads}


def _read_state(path: str) -> dict[str, torch.Tensor]:
    """A state_dict from safetensors, or from a .pth that holds nothing but tensors: nothing else is unpickled."""
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise ValueError(f"{path} {'is a folder' if file.is_dir() else 'does not exist'}")
    return load_state_dict(str(file), weights_only=True)


def _fitting(net: nn.Module, state: dict[str, torch.Tensor] | None) -> dict[str, np.ndarray]:
    """Those weights that a model has too, in the same shape."""
    if state is None:
        raise ValueError("a function's model has no hub")
    own = net.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < 0.5 * len(own):
        raise ValueError(f"{len(fitting)} of {len(own)} tensors fit")
    return {name: value.numpy() for name, value in fitting.items()}


@dataclass(frozen=True)
class Trained:
    """A classifier that is given ready: how to rebuild it, its weights and what it says of itself."""

    model: ModelSettings
    weights: dict[str, np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    class_names: tuple[str, ...] | None


def read_trained(folder: Path, function: str | None = None) -> Trained:
    """A folder that kdstudy exported or that timm wrote (`local-dir:`): config.json and safetensors or a weights file.

    function: the only one that the folder may name as its architecture; else a folder could have anything called.
    Raises ValueError with the reason.
    """
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    if (folder / "study.toml").is_file():
        raise ValueError(f"it is a study; `kdstudy export {folder} OUT --model teacher` writes the folder to name here")
    if not (folder / "config.json").is_file():
        raise ValueError("it holds no config.json; name a folder that `kdstudy export` or timm's save_for_hf wrote")
    files = [path for name in ("model.safetensors", "pytorch_model.bin") if (path := folder / name).is_file()]
    if not files:
        raise ValueError("it holds no model.safetensors")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = config["pretrained_cfg"]
        arguments = {name: value for name, value in (config.get("model_args") or {}).items()
                     if name not in ("num_classes", "in_chans", "img_size")}
        settings = ModelSettings(model=config["architecture"], args=arguments, image_size=own["input_size"][-1])
        names = config.get("label_names") or own.get("label_names")
        if is_function(settings.model) and settings.model != function:
            raise ValueError(f"its model is the function {settings.model}, which is called only where the study says "
                             f"so: set teacher.function = {settings.model!r}")
        weights = {name: tensor.numpy() for name, tensor in _read_state(str(files[0])).items()}
        classes = config.get("num_classes") or own["num_classes"]
        mean, std = tuple(map(float, own["mean"])), tuple(map(float, own["std"]))
        if not isinstance(classes, int):
            raise ValueError("num_classes of its config.json is no number")
        return Trained(settings, weights, mean, std, classes, tuple(map(str, names)) if names else None)
    except Exception as error:
        raise ValueError(f"it is not a model that can be read: {one_line(error)}") from None


def check_trained(trained: Trained, *, classes: int, channels: int, image_size: int) -> None:
    """See whether a given model is what its weights are of, and takes the images. Raises ValueError."""
    check(trained.model, classes=classes, channels=channels, image_size=image_size)
    check_weights(trained.model, trained.weights, classes=classes, channels=channels, image_size=image_size)
    check_normalisation(trained.mean, trained.std, channels)


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """See whether images can be normalised with these. Raises ValueError."""
    if {len(mean), len(std)} != {channels}:
        raise ValueError(f"its mean and std are of {len(mean)} and {len(std)} channels, but the images have {channels}")
    if not (all(map(math.isfinite, [*mean, *std])) and min(std) > 0):
        raise ValueError("its mean and std are not those of any images")


def check_weights(settings: ModelSettings, weights: dict[str, np.ndarray], *, classes: int, channels: int,
                  image_size: int) -> None:
    """See whether weights are those of a model, all of them and no others. Raises ValueError."""
    with torch.device("meta"):
        own = build(settings, classes=classes, channels=channels, image_size=image_size).net.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    given = {name: array.shape for name, array in weights.items()}
    wrong = [name for name in {**shapes, **given} if shapes.get(name) != given.get(name)]
    if wrong:
        raise ValueError(f"its weights are not those of a {settings.model} for images of {channels} channels: "
                         f"{wrong[0]} is {given.get(wrong[0], 'missing')}, not {shapes.get(wrong[0], 'known')}")


# Names of modules that attend to other positions, and of those that weight channels or pool.
POSITIONS = re.compile("Attention|Attn|MHSA|GPSA")
CHANNELS = re.compile("Pool|SplitAttn|SelectiveKernel|ChannelAttn|SpatialAttn|Cbam|LightChannel|LightSpatial")


def kind_of(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> tuple[str, str]:
    """A model's kind and its class's name. The kind is `Transformer` where there is attention between positions, `CNN`
    where there are convolutions, else `MLP`."""
    with torch.device("meta"):
        net = build(settings, classes=classes, channels=channels, image_size=image_size).net
    names = {type(module).__name__ for module in net.modules()}
    if any(POSITIONS.search(name) and not CHANNELS.search(name) for name in names):
        kind = "Transformer"
    else:
        kind = "CNN" if wants_channels_last(net) else "MLP"
    return kind, type(net).__name__


def normalisation(net: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A model's own mean and std, 0.5 where it has none; for other than three channels, their average for each."""
    config = getattr(net, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", (0.5,) * channels), config.get("std", (0.5,) * channels)
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return tuple(mean), tuple(std)


def check(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> None:
    """See whether timm can build the model and whether it takes its images, without allocating weights.

    Raises ValueError with one line that begins with the offending key: `model`, `args` or `image_size`.
    """
    _check_name(settings.model)
    for name in {"num_classes", "in_chans"} & settings.args.keys():
        raise ValueError(f"args must not hold {name}: the data decide it")
    size = settings.image_size or image_size
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    try:
        with torch.device("meta"), _within_reason():
            net = create(settings.model, **arguments)
    except Exception as error:
        raise ValueError(f"args{_shown(settings.args)} do not suit {settings.model}: {one_line(error)}") from None
    if not isinstance(net, nn.Module):
        raise ValueError(f"model = {settings.model!r} returns a {type(net).__name__}, not a torch.nn.Module")
    patch = _patch_size(net)
    if patch and size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise ValueError(f"image_size = {size} is not a multiple of {settings.model}'s patch size {patch}; "
                         f"use {nearest}, or another patch_size in args")
    try:
        with torch.no_grad():
            answer = net.eval()(torch.zeros(2, arguments["in_chans"], size, size, device="meta"))
            shape = tuple(getattr(answer, "shape", ()))
    except Exception as error:
        given = f" with args{_shown(settings.args)}" if settings.args else ""
        raise ValueError(f"image_size = {size} does not suit {settings.model}{given}: {one_line(error)}") from None
    if shape != (2, classes):
        what = f"answers of the shape {shape}" if shape else f"a {type(answer).__name__}"
        raise ValueError(f"model = {settings.model!r} gives {what} for 2 images of {classes} classes, not "
                         f"(2, {classes}); a model must give one logit per class")


def _shown(arguments: dict[str, Any]) -> str:
    text = repr(arguments)
    return f" = {text}" if len(text) <= LONGEST_SHOWN else ""


def _check_name(name: str) -> None:
    import difflib

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


def _patch_size(net: nn.Module) -> int | None:
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    return patch[0] if isinstance(patch, (tuple, list)) else patch


def save_weights(model: Classifier, path: Path) -> None:
    """Write the timm model's weights as safetensors, under timm's own names."""
    save_file({name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}, path)


def load_weights(model: Classifier, path: Path) -> None:
    """Read weights that `save_weights` wrote into a model built with the same settings. Raises ValueError."""
    try:
        model.net.load_state_dict(load_file(path))
    except Exception as error:  # of many kinds
        raise ValueError(f"{path} does not hold this model's weights: {one_line(error)}") from None


def wants_channels_last(model: nn.Module) -> bool:
    """Convolutional networks train faster with channels last; a transformer has only its stem to gain."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
