"""ONNX: one file with the normalisation, and on request the resizing, inside the graph."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdstudy.errors import StudyFailedError
from kdstudy.export.formats import snippets
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.export.formats.program import INPUT, OUTPUT, cannot, labels, quiet, trace

if TYPE_CHECKING:
    from onnx import ModelProto

FILE = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes in one file: protobuf's limit, and room for the graph
FLOAT, INTEGER = 1, 2  # of onnx.AttributeProto.AttributeType
AXES = {INPUT: ("batch", None, "height", "width"), OUTPUT: ("batch", None)}


class Onnx(Format):
    name = "onnx"
    requires = ("onnx", "onnxscript", "onnxslim", "onnxruntime")
    extra = "onnx"

    def write(self, deployable: Deployable, folder: Path) -> list[str]:
        import onnx  # an extra

        try:
            with quiet():
                model = _converted(deployable)
                is_large = sum(tensor.nbytes for tensor in deployable.model.state_dict().values()) > LARGEST
                onnx.save_model(model, str(folder / FILE), save_as_external_data=is_large, location=f"{FILE}.data")
        except StudyFailedError:
            raise
        except Exception as error:  # of many kinds
            raise cannot(deployable, self.name, error) from error
        return [FILE, *([f"{FILE}.data"] if is_large else [])]

    def usage(self, folder: str, deployable: Deployable) -> list[str]:
        return usage(f"{folder}/{FILE}", deployable)

    def check_received(self, folder: Path, function: str | None, trust: bool) -> None:
        """A graph runs no code, but may name files with its weights."""
        check_inside(folder, FILE)


def usage(file: str, deployable: Deployable) -> list[str]:
    """Lines that classify an image file with an ONNX file. file: its path."""
    return [
        "import json", "import numpy as np", "import onnxruntime", "from PIL import Image",
        f"session = onnxruntime.InferenceSession({snippets.text(file)})",
        *snippets.images(deployable, "numpy", outside=not deployable.resizes),
        f'[logits] = session.run(None, {{"{INPUT}": images}})[0]',
        *snippets.best(deployable, 'json.loads(session.get_modelmeta().custom_metadata_map["class_names"])'),
    ]


def check_inside(folder: Path, file: str) -> None:
    """See that an ONNX file keeps weights, if not in itself, then in the file beside it that we write. Raises
    StudyFailedError."""
    import onnx  # an extra
    from onnx.external_data_helper import _get_all_tensors

    try:
        model = onnx.load(str(folder / file), load_external_data=False)
        named = {entry.value for tensor in _get_all_tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL
                 for entry in tensor.external_data if entry.key == "location"}
    except Exception as error:  # of many kinds
        raise StudyFailedError(f"{folder / file} is not an ONNX file: {type(error).__name__}") from None
    if others := named - {f"{file}.data"}:
        raise StudyFailedError(f"{folder / file} names another file, {min(others)!r}, which is not read")


def _converted(deployable: Deployable) -> "ModelProto":
    import onnxslim  # an extra

    program = torch.onnx.export(trace(deployable, Onnx.name), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                                external_data=False, verbose=False)
    model = program.model_proto
    _resize_as_torch(model.graph)
    model = onnxslim.slim(model)
    _strip(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, AXES[value.name], strict=True):
            if axis.dim_param and name:
                axis.dim_param = name
    for name, text in labels(deployable).items():
        model.metadata_props.add(key=name, value=text)
    return model


def _resize_as_torch(graph) -> None:
    """Let an antialiased Resize weight pixels as torch does: Keys' cubic with a = -0.5, and nothing outside the image.
    onnxscript 0.7.0 and earlier do not say so, and logits would differ."""
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Resize" and "antialias" in attributes and attributes["antialias"].i:
            for name in attributes.keys() & {"exclude_outside", "cubic_coeff_a"}:
                node.attribute.remove(attributes[name])
            node.attribute.add(name="exclude_outside", i=1, type=INTEGER)
            node.attribute.add(name="cubic_coeff_a", f=-0.5, type=FLOAT)


def _strip(graph) -> None:
    """Leave out what torch notes at every node: where in whose source code it was called."""
    del graph.metadata_props[:]
    del graph.value_info[:]  # shapes in between, with torch's names for the axes; every runtime infers its own
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
