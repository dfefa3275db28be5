"""The formats that a model is exported in, one file each, and their list."""

from kdstudy.export.formats.base import Format
from kdstudy.export.formats.timm_folder import TimmFolder

FORMATS: tuple[Format, ...] = (TimmFolder(),)
FORMAT = {one.name: one for one in FORMATS}
DEFAULT = "timm"
