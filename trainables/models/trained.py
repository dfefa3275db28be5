"""A trained classifier in a folder, as `kdstudy export` and timm write them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.trainables.functions import is_function
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models.checks import check, check_normalisation, check_weights
from kdstudy.trainables.models.pretrained import read_state
from kdstudy.trainables.settings import ModelSettings

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read


@dataclass(frozen=True)
class Trained:
    """A trained classifier: how to rebuild it, its weights, and what its folder says about it.

    weights: its state_dict. mean, std: a number per channel. class_names: None if the folder does not name them.
    """

    model: ModelSettings
    weights: dict[str, np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    class_names: tuple[str, ...] | None


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
    weights = {name: tensor.numpy() for name, tensor in read_state(str(weights_file)).items()}
    classes = config.get("num_classes") or own["num_classes"]
    mean, std = tuple(map(float, own["mean"])), tuple(map(float, own["std"]))
    if not isinstance(classes, int):
        raise ValueError("num_classes in its config.json is not a number")
    return Trained(settings, weights, mean, std, classes, tuple(map(str, names)) if names else None)


def check_trained(trained: Trained, *, classes: int, channels: int, image_size: int) -> None:
    """Raises ValueError unless the weights are those of the model, and the model takes the images."""
    check(trained.model, classes=classes, channels=channels, image_size=image_size)
    check_weights(trained.model, trained.weights, classes=classes, channels=channels, image_size=image_size)
    check_normalisation(trained.mean, trained.std, channels)
