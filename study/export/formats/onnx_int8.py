"""ONNX with weights and activations in eight bits, beside the file in fp32: about a quarter of its size."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from kdstudy.export.formats import onnx
from kdstudy.export.formats.base import Deployable, Format
from kdstudy.export.formats.program import INPUT, cannot, quiet
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.views import resize

FILE = "model.int8.onnx"
CALIBRATION_IMAGES = 512  # at most, validation images that show the range of each activation
BATCH = 64


class OnnxInt8(Format):
    """Static quantisation by onnxruntime (QDQ, weights per channel), calibrated on validation images."""

    name = "onnx-int8"
    source = "onnx"
    requires = onnx.Onnx.requires
    extra = onnx.Onnx.extra
    largest_difference = None
    repeats = 0.5  # without instructions for eight bits (VNNI), sums of products saturate where others do not

    def write(self, deployable: Deployable, folder: Path) -> list[str]:
        from onnxruntime.quantization import QuantFormat, quantize_static  # an extra
        from onnxruntime.quantization.shape_inference import quant_pre_process

        try:
            with quiet(), tempfile.TemporaryDirectory() as temporary:
                prepared = Path(temporary) / FILE
                quant_pre_process(str(folder / onnx.FILE), str(prepared), skip_symbolic_shape=True)
                quantize_static(str(prepared), str(folder / FILE), _Calibration(deployable),
                                quant_format=QuantFormat.QDQ, per_channel=True)
        except Exception as error:  # of many kinds
            raise cannot(deployable, self.name, error) from error
        return [FILE]

    def usage(self, folder: str, deployable: Deployable) -> list[str]:
        return onnx.usage(f"{folder}/{FILE}", deployable)

    def check_received(self, folder: Path, function: str | None, trust: bool) -> None:
        onnx.check_inside(folder, FILE)


class _Calibration:
    """Feeds validation images to onnxruntime, as its CalibrationDataReader, which would have to be imported for it."""

    def __init__(self, deployable: Deployable):
        images = calibration_images(deployable.splits.validation)
        self._size = None if deployable.resizes else deployable.model.size
        self._parts = iter(np.array_split(images, -(-len(images) // BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._parts, None)
        if images is None:
            return None
        images = torch.from_numpy(images).float() / 255
        return {INPUT: (resize(images, self._size) if self._size else images).numpy()}


def calibration_images(validation: ImageSet) -> np.ndarray:
    """At most CALIBRATION_IMAGES of the validation images, evenly spread: (N, C, H, W) uint8."""
    number = min(CALIBRATION_IMAGES, len(validation))
    return validation.images[np.linspace(0, len(validation) - 1, number).round().astype(int)]
