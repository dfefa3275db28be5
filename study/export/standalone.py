"""Logits of an exported model, by the packages alone that its format names: this file imports nothing of kdstudy.

`python -P standalone.py FOLDER FORMAT FUNCTION IMAGES.npy LOGITS.npy [IMAGES.npy LOGITS.npy …]` runs it in a process of
its own, which cannot import kdstudy either. FUNCTION: empty if none may be called. IMAGES.npy: (N, C, H, W) uint8.
LOGITS.npy: (N, classes) fp32.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np

BATCH = 64


def logits(folder: str | Path, kind: str, images: list[np.ndarray], function: str | None = None) -> list[np.ndarray]:
    """Return the logits (N, classes) in fp32 of the model in a folder, in the format `kind`, for each array of images
    (N, C, H, W) uint8.

    function: the only function, package.module:function, that the folder may name as its model. Raises ValueError if it
    names another, which is not called."""
    predict = READERS[kind](Path(folder), function)
    return [np.concatenate([predict(part[start:start + BATCH].astype(np.float32) / 255)
                            for start in range(0, len(part), BATCH)]) for part in images]


# Each reader returns a function from images (B, C, H, W) float32 in 0..1, of the size at which the study stored them,
# to logits.


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
        return net((torch.from_numpy(_resized(images, size)) - mean) / std).float().numpy()

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


def _read_onnx(folder, function, file="model.onnx"):
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors alone
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    [entry] = session.get_inputs()
    return lambda images: session.run(None, {entry.name: _resized(images, entry.shape[2:])})[0]


def _read_onnx_int8(folder, function):
    return _read_onnx(folder, function, "model.int8.onnx")


def _read_pt2(folder, function):
    import torch

    program = torch.export.load(folder / "model.pt2")
    [name] = program.graph_signature.user_inputs
    [size] = [node.meta["val"].shape[2:] for node in program.graph.nodes if node.name == name]
    model = program.module()

    @torch.no_grad()
    def predict(images):
        return model(torch.from_numpy(_resized(images, size))).numpy()

    return predict


def _resized(images, size):
    """Images brought to a size, as (height, width), with which a model does so itself if they are not numbers."""
    if not all(isinstance(side, int) for side in size) or images.shape[2:] == tuple(size):
        return np.ascontiguousarray(images)
    import torch

    resized = torch.nn.functional.interpolate(torch.from_numpy(images), tuple(size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).numpy()


READERS = {"timm": _read_timm, "onnx": _read_onnx, "onnx-int8": _read_onnx_int8, "pt2": _read_pt2}

if __name__ == "__main__":
    sys.modules["kdstudy"] = None  # an import of it now fails
    given, kind, function, *files = sys.argv[1:]
    if function:  # the current folder, where the user's own modules are, as when the study ran; last, and else not at
        sys.path.append(os.getcwd())  # all: it may be a stranger's, with a timm.py
    sources, targets = files[::2], files[1::2]
    for target, result in zip(targets, logits(given, kind, list(map(np.load, sources)), function or None), strict=True):
        np.save(target, result)
