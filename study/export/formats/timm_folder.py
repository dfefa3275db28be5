"""The folder that plain timm loads, `timm.create_model("local-dir:FOLDER", pretrained=True)`: safetensors and
config.json. A model from a function, unknown to timm, gets the same two files."""

import dataclasses
import json
from pathlib import Path

import timm
from timm.models import PretrainedCfg, save_for_hf

from kdstudy.errors import StudyFailedError, UserError
from kdstudy.export.formats import snippets
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.store import files
from kdstudy.trainables import models
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.models import Classifier
from kdstudy.trainables.models.building import NOT_OF_THE_MODEL

CONFIG = "config.json"
# timm copies the origin and licence of its own pretrained weights, which do not apply to a model trained from scratch.
OF_PRETRAINED = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description")
# What could make timm read other weights than those in the folder.
LOADING = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", *NOT_OF_THE_MODEL}
DESCRIBING = {field.name for field in dataclasses.fields(PretrainedCfg)} - LOADING


class TimmFolder(Format):
    name = "timm"

    def write(self, deployable: Deployable, folder: Path) -> list[str]:
        if not isinstance(deployable.model, Classifier):
            raise UserError("--format timm holds one model, not the mean of several models' logits; choose another "
                            "format, or --average weights")
        if models.is_function(deployable.settings.model):
            _write_plain(deployable, folder)
        else:
            _write_timm(deployable, folder)
        return [WEIGHTS, CONFIG]

    def usage(self, folder: str, deployable: Deployable) -> list[str]:
        settings, names, own = deployable.settings, 'config["label_names"]', 'config["pretrained_cfg"]'
        if models.is_function(settings.model):
            module, _, function = settings.model.partition(":")
            arguments = {"num_classes": len(deployable.splits.class_names), "in_chans": deployable.splits.channels}
            lines = [
                "import json", "import numpy as np", "import torch", "from PIL import Image",
                "from safetensors.torch import load_file", f"from {module} import {function}",
                f"config = json.load(open({snippets.text(f'{folder}/{CONFIG}')}))",
                f"model = {function}(**{arguments | settings.args}).eval()",
                f"model.load_state_dict(load_file({snippets.text(f'{folder}/{WEIGHTS}')}))",
            ]
        else:
            names, own = 'model.pretrained_cfg["label_names"]', "config"
            lines = [
                "import numpy as np", "import timm", "import torch", "from PIL import Image",
                "# local-dir: followed by the path of this folder",
                f"model = timm.create_model({snippets.text(f'local-dir:{folder}')}, pretrained=True).eval()",
                "config = timm.data.resolve_model_data_config(model)  # image size, mean and std",
            ]
        return [
            *lines, *snippets.images(deployable, "torch", outside=True),
            f"mean, std = (torch.tensor({own}[key]).view(1, -1, 1, 1) for key in (\"mean\", \"std\"))",
            "logits = model((images - mean) / std).detach().numpy()[0]", *snippets.best(deployable, names),
        ]

    def check_received(self, folder: Path, function: str | None, trust: bool) -> None:
        """config.json may name a function of its author's, and timm would obey settings that say where weights lie."""
        path = folder / CONFIG
        config = files.read_json(path)
        try:
            architecture, own, arguments = config["architecture"], config["pretrained_cfg"], config.get("model_args")
            keys = {name for values in (own, arguments or {}) for name, value in values.items() if value}
        except (KeyError, TypeError, AttributeError):
            raise StudyFailedError(f"{path} is not a model's configuration") from None
        if unknown := sorted(set(own) - DESCRIBING - LOADING) + sorted(keys & LOADING):
            raise StudyFailedError(f"{path} sets {unknown[0]!r}, which could have other weights fetched or read; "
                                   "kdstudy exports no such setting")
        if not isinstance(architecture, str) or not (models.is_function(architecture) or timm.is_model(architecture)):
            raise StudyFailedError(f"{path} names a model that timm does not know: {str(architecture)[:100]!r}")
        if models.is_function(architecture) and architecture != function:
            raise UserError(f"{path} names the function {architecture!r} as its model, and its code would run; if you "
                            f"trust its author, add --function {architecture}")


def _write_timm(deployable: Deployable, folder: Path) -> None:
    model, splits = deployable.model, deployable.splits
    save_for_hf(
        model.net, str(folder), safe_serialization=True,
        model_config={"label_names": list(splits.class_names)},
        data_config={"input_size": (splits.channels, model.size, model.size), "mean": model.mean, "std": model.std,
                     "interpolation": "bicubic", "crop_pct": 1.0},
    )
    config = json.loads((folder / CONFIG).read_text())
    # transformers' TimmWrapper names it a second time beside these arguments; timm reads it from outside them too.
    (config.get("model_args") or {}).pop("num_classes", None)
    if not deployable.settings.pretrained:
        for name in OF_PRETRAINED:
            config["pretrained_cfg"].pop(name, None)
    files.write_json(folder / CONFIG, config)


def _write_plain(deployable: Deployable, folder: Path) -> None:
    """kdstudy can read this folder back as `teacher.trained`."""
    model, settings, splits = deployable.model, deployable.settings, deployable.splits
    models.save_weights(model, folder / WEIGHTS)
    classes = len(splits.class_names)
    files.write_json(folder / CONFIG, {
        "architecture": settings.model, "model_args": settings.args, "num_classes": classes,
        "label_names": list(splits.class_names),
        "pretrained_cfg": {"input_size": [splits.channels, model.size, model.size], "mean": list(model.mean),
                           "std": list(model.std), "num_classes": classes},
    })
