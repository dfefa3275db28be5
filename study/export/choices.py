"""The formats by name, for a command line that does not import torch. `formats/` holds the formats themselves."""

CHOICES = ("timm", "onnx", "pt2")  # of `--format`
DEFAULT = "timm"
QUANTISED = {"int8": "onnx-int8"}  # of `--quantise`
