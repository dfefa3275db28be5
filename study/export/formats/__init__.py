"""The formats that a model is exported in, one file each, and their list."""

from kdstudy.export.formats.base import Format
from kdstudy.export.formats.onnx import Onnx
from kdstudy.export.formats.onnx_int8 import OnnxInt8
from kdstudy.export.formats.pt2 import Pt2
from kdstudy.export.formats.timm_folder import TimmFolder

FORMATS: tuple[Format, ...] = (TimmFolder(), Onnx(), OnnxInt8(), Pt2())  # one that is made of another comes after it
FORMAT = {one.name: one for one in FORMATS}
