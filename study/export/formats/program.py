"""The graph of a whole classifier, from images in 0..1 to logits, from which onnx and pt2 are written."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram

from kdstudy.errors import StudyFailedError
from kdstudy.export.formats.base import Deployable
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.models import Classifier

INPUT, OUTPUT = "images", "logits"
EXAMPLES = 2  # images to trace with; from 1, torch would conclude that there is always one
# What torch notes at a node: where in whose source code it was called. That names folders of this machine.
ORIGINS = ("stack_trace", "from_node", "source_fn_stack")


class Whole(nn.Module):
    """A classifier for images (B, C, H, W) float32 in 0..1. It normalises them, and resizes them first if `resizes`."""

    def __init__(self, model: Classifier, resizes: bool):
        super().__init__()
        self.model, self.resizes = model, resizes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.resizes:  # always, since a graph has no other branch; to the same size it changes nothing
            size = (self.model.size, self.model.size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return self.model(images)


def trace(deployable: Deployable, kind: str) -> ExportedProgram:
    """Trace the whole classifier for any number of images. kind: the format, for the message.

    Raises StudyFailedError, in one line, if torch cannot.
    """
    side, sizes = deployable.model.size, {0: Dim("batch")}
    if deployable.resizes:
        side, sizes = side + 1, sizes | {2: Dim("height", min=2), 3: Dim("width", min=2)}
    # Not square: from equal sides torch would conclude that they always are.
    example = torch.zeros(EXAMPLES, deployable.splits.channels, side, side + deployable.resizes)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(Whole(deployable.model, deployable.resizes).eval(), (example,),
                                          dynamic_shapes={INPUT: sizes}, strict=False)
    except Exception as error:  # of many kinds
        raise cannot(deployable, kind, error) from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for name in ORIGINS:
                    node.meta.pop(name, None)
    return program


def cannot(deployable: Deployable, kind: str, error: Exception) -> StudyFailedError:
    """The error for a model that torch, or a converter, cannot write in a format."""
    return StudyFailedError(f"{deployable.settings.model} cannot be exported as {kind}: {one_line(error)}; leave out "
                            f"--format {kind}, or change the model's code")


def labels(deployable: Deployable) -> dict[str, str]:
    """What a file of a graph says about itself, as JSON texts: class_names, and the mean and std that it applies."""
    model = deployable.model
    inside: dict[str, Any] = {"input": f"{INPUT}: float32 (B, C, H, W) in 0..1", "mean": model.mean, "std": model.std,
                              "size": model.size, "resizes": deployable.resizes}
    return {"class_names": json.dumps(list(deployable.splits.class_names)), "preprocessing": json.dumps(inside)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch and the converters print, meant for their developers, from the terminal."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(earlier)
