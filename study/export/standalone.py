"""Logits of an exported model, by the packages alone that its format names: this file imports nothing of kdstudy.

`python standalone.py FOLDER FORMAT IMAGES.npy LOGITS.npy [FUNCTION]` runs it in a process of its own, which cannot
import kdstudy either. IMAGES.npy: (N, C, H, W) uint8. LOGITS.npy: (N, classes) fp32.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

BATCH = 64


def logits(folder: str | Path, kind: str, images: np.ndarray, function: str | None = None) -> np.ndarray:
    """Return the logits (N, classes) in fp32 of the model in a folder, in the format `kind`, for images (N, C, H, W)
    uint8.

    function: the only function, package.module:function, that the folder may name as its model. Raises ValueError if it
    names another, which is not called."""
    predict = READERS[kind](Path(folder), function)
    return np.concatenate([predict(images[start:start + BATCH]) for start in range(0, len(images), BATCH)])


def _read_timm(folder, function):
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if ":" in config["architecture"]:
        net, data = _function_model(folder, config, function), config["pretrained_cfg"]
    else:
        import timm

        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
        data = timm.data.resolve_model_data_config(net)
    net.eval()
    size = tuple(data["input_size"][1:])
    mean, std = (torch.tensor(data[key]).view(1, -1, 1, 1) for key in ("mean", "std"))

    @torch.no_grad()
    def predict(images):
        batch = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
        if tuple(batch.shape[2:]) != size:
            batch = torch.nn.functional.interpolate(batch, size, mode="bicubic", antialias=True).clamp(0, 1)
        return net((batch - mean) / std).float().numpy()

    return predict


def _function_model(folder, config, function):
    from safetensors.torch import load_file

    if config["architecture"] != function:
        raise ValueError(f"its model is the function {config['architecture']}, which nobody here has named")
    module, _, name = function.partition(":")
    arguments = {"num_classes": config["num_classes"], "in_chans": config["pretrained_cfg"]["input_size"][0]}
    net = getattr(importlib.import_module(module), name)(**arguments | config["model_args"])
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net


READERS = {"timm": _read_timm}

if __name__ == "__main__":
    sys.modules["kdstudy"] = None  # an import of it now fails
    sys.path[0] = ""  # instead of this file's folder: where the user's own modules are, as when the study ran
    given, kind, source, target, *function = sys.argv[1:]
    np.save(target, logits(given, kind, np.load(source), *function))
