"""The folder that plain timm loads, `timm.create_model("local-dir:FOLDER", pretrained=True)`: safetensors and
config.json. A model from a function, unknown to timm, gets the same two files."""

import json
from pathlib import Path

from timm.models import save_for_hf

from kdstudy.errors import UserError
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.store import files
from kdstudy.trainables import models
from kdstudy.trainables.files import WEIGHTS
from kdstudy.trainables.models import Classifier

CONFIG = "config.json"
# timm copies the origin and licence of its own pretrained weights, which do not apply to a model trained from scratch.
OF_PRETRAINED = ("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "description")


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
        settings = deployable.settings
        if models.is_function(settings.model):
            module, _, function = settings.model.partition(":")
            return [f"from {module} import {function}", "from safetensors.torch import load_file",
                    "# config.json has image size, mean and std",
                    f"model = {function}(num_classes=…, in_chans=…, **{settings.args})",
                    f"model.load_state_dict(load_file({json.dumps(f'{folder}/{WEIGHTS}')}))"]
        return ["import timm",
                "# local-dir: followed by the path of this folder",
                f"model = timm.create_model({json.dumps(f'local-dir:{folder}')}, pretrained=True).eval()",
                "config = timm.data.resolve_model_data_config(model)  # image size, mean and std"]


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
