"""A trained classifier: in a folder, as `kdstudy export` and timm write them, or in a file of weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdstudy.trainables.functions import is_function
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models.building import build
from kdstudy.trainables.models.checkpoint import read_state, unwrapped
from kdstudy.trainables.models.checks import check, check_normalisation, check_weights
from kdstudy.trainables.settings import ModelSettings

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read


@dataclass(frozen=True)
class Trained:
    """A trained classifier: how to rebuild it, its weights, and what its folder says about it.

    weights: its state_dict. mean, std: a number per channel. class_names: None if nothing names them. part: where in
    its file the weights were, as in `checkpoint.State`.
    """

    model: ModelSettings
    weights: dict[str, np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    class_names: tuple[str, ...] | None
    part: str | None = None


def read_trained(folder: Path, function: str | None = None) -> Trained:
    """Read a folder that `kdstudy export` or timm's save_for_hf wrote: config.json and a file of weights.

    function: the only function that the folder may name as its architecture, since a stranger's folder could otherwise
    have any function called. Raises ValueError with the reason.
    """
    weights_file = _weights_file(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _trained(config, weights_file, function)
    except Exception as error:
        raise ValueError(f"it cannot be read as a model: {one_line(error)}") from None


def _weights_file(folder: Path) -> Path:
    if folder.is_file():
        raise ValueError("it is a file, which does not say of which model its weights are; set teacher.model, and "
                         "teacher.args if it has any")
    if not folder.is_dir():
        raise ValueError("the folder does not exist")
    if (folder / "study.toml").is_file():
        raise ValueError(f"it is a study; `kdstudy export {folder} OUT --model teacher` writes the folder to name here")
    if not (folder / "config.json").is_file():
        raise ValueError("it holds no config.json; name a folder that `kdstudy export` or timm's save_for_hf wrote")
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"it holds no {WEIGHTS_FILES[0]}")


def _trained(config: dict[str, Any], weights_file: Path, function: str | None) -> Trained:
    own = config["pretrained_cfg"]
    arguments = {name: value for name, value in (config.get("model_args") or {}).items()
                 if name not in ("num_classes", "in_chans", "img_size")}
    settings = ModelSettings(model=config["architecture"], args=arguments, image_size=own["input_size"][-1])
    names = config.get("label_names") or own.get("label_names")
    if is_function(settings.model) and settings.model != function:
        raise ValueError(f"its model is the function {settings.model}, which is called only if the study names it: "
                         f"set teacher.function = {settings.model!r}")
    state = read_state(weights_file, names_as_they_are=True)  # a function's model may have a part called `module`
    weights = {name: tensor.numpy() for name, tensor in state.weights.items()}
    classes = config.get("num_classes") or own["num_classes"]
    mean, std = tuple(map(float, own["mean"])), tuple(map(float, own["std"]))
    if not isinstance(classes, int):
        raise ValueError("num_classes in its config.json is not a number")
    return Trained(settings, weights, mean, std, classes, tuple(map(str, names)) if names else None)


def read_trained_file(file: Path, settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> Trained:
    """Read a file of weights of a known model, which normalises as the model's own configuration says.

    classes, channels, image_size: of the images. Its own number of classes is the result's `classes`. Raises ValueError
    with the reason.
    """
    state = read_state(file)
    settings = ModelSettings(model=settings.model, args=settings.args, image_size=settings.image_size)
    with torch.device("meta"):
        model, other = (build(settings, classes=number, channels=channels, image_size=image_size)
                        for number in (classes, classes + 1))
    names = {unwrapped(name): name for name in model.net.state_dict()}
    weights = {names.get(name, name): tensor.numpy() for name, tensor in state.weights.items()}
    own = _classes_in(weights, model.net.state_dict(), other.net.state_dict()) or classes
    try:
        check_weights(settings, weights, classes=own, channels=channels, image_size=image_size)
    except ValueError as error:
        raise ValueError(f"{error}; set teacher.args and teacher.image_size to what it was trained with") from None
    return Trained(settings, weights, model.mean, model.std, own, None, state.part)


def _classes_in(weights: dict[str, np.ndarray], one: dict[str, torch.Tensor],
                other: dict[str, torch.Tensor]) -> int | None:
    """The number of classes of weights, read off the first tensor whose shape depends on it; None if they lack it.

    one, other: the state_dict of the same model with n and with n + 1 classes.
    """
    for name, tensor in one.items():
        if name in weights and weights[name].ndim == tensor.ndim:
            for axis, (first, second) in enumerate(zip(tensor.shape, other[name].shape, strict=True)):
                if first + 1 == second:
                    return weights[name].shape[axis]
    return None


def check_trained(trained: Trained, *, classes: int, channels: int, image_size: int) -> None:
    """Raises ValueError unless the weights are those of the model, and the model takes the images."""
    check(trained.model, classes=classes, channels=channels, image_size=image_size)
    check_weights(trained.model, trained.weights, classes=classes, channels=channels, image_size=image_size)
    check_normalisation(trained.mean, trained.std, channels)
