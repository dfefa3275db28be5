"""timm models that take images in 0..1 and normalise for themselves."""

import logging
from functools import lru_cache
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trainables.settings import ModelSettings

# timm logs how it maps weights at INFO and warns of every missing pretrained head.
logging.getLogger("timm").setLevel(logging.ERROR)


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
    """The keyword arguments for timm.create_model: the study's own plus what the data decide."""
    arguments = {"num_classes": classes, "in_chans": channels}
    config = timm.get_pretrained_cfg(settings.model)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = settings.image_size or image_size
    return arguments | settings.args


def build(settings: ModelSettings, *, classes: int, channels: int, image_size: int, seed: int = 0) -> Classifier:
    """Create a model with weights that depend on `seed` alone (or pretrained ones, with a fresh head).

    image_size: pixels of the stored images, for models that do not name their own.
    """
    arguments = create_arguments(settings, classes=classes, channels=channels, image_size=image_size)
    torch.manual_seed(seed)
    net = timm.create_model(settings.model, pretrained=settings.pretrained, **arguments)
    mean, std = normalisation(net, channels)
    return Classifier(net, mean, std, settings.image_size or image_size)


def normalisation(net: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A timm model's own mean and std; for other than three channels, their average for every channel."""
    config = net.pretrained_cfg
    mean, std = config["mean"], config["std"]
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
        with torch.device("meta"):
            net = timm.create_model(settings.model, pretrained=False, **arguments)
    except Exception as error:
        raise ValueError(f"args = {settings.args} do not suit {settings.model}: {_one_line(error)}") from None
    patch = _patch_size(net)
    if patch and size % patch:
        nearest = max(patch, round(size / patch) * patch)
        raise ValueError(f"image_size = {size} is not a multiple of {settings.model}'s patch size {patch}; "
                         f"use {nearest}, or another patch_size in args")
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(2, arguments["in_chans"], size, size, device="meta"))
    except Exception as error:
        raise ValueError(f"image_size = {size} does not suit {settings.model}: {_one_line(error)}") from None


def _check_name(name: str) -> None:
    import difflib

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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def save_weights(model: Classifier, path: Path) -> None:
    """Write the timm model's weights as safetensors, under timm's own names."""
    save_file({name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}, path)


def load_weights(model: Classifier, path: Path) -> None:
    """Read weights that `save_weights` wrote into a model built with the same settings."""
    model.net.load_state_dict(load_file(path))


def wants_channels_last(model: Classifier) -> bool:
    """Convolutional networks train faster with channels last; a transformer has only its stem to gain."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
