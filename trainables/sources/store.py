"""What a store of files is, of whatever kind, and which of its files are nobody's images."""

from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LABEL_SUFFIX = ".cls"  # of a label file in WebDataset's shards
# What file managers leave behind. Synology's folder holds previews, which look like images.
LITTER = ("thumbs.db", "desktop.ini", "@eadir")
Kind = Literal["file", "folder"]


@dataclass(frozen=True)
class File:
    """A file below a location, as listed."""

    name: str  # relative to the location, with slashes
    size: int  # bytes
    changed: int  # nanoseconds since 1970

    @property
    def is_image(self) -> bool:
        """Whether it is called like an image."""
        return self.name.lower().endswith(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Listing:
    """What is below a location, by names relative to it. notes: what was left out, if anything; see `Raw`."""

    files: list[File]
    folders: list[str]
    notes: tuple[str, ...] = ()


class UnreachableError(OSError):
    """A store did not give a file, which may be sound: the network, or a permission."""


class Store(Protocol):
    """Where files are. Everything may raise ValueError, OSError or pyarrow's ArrowException."""

    is_local: bool  # whether `view` takes no memory

    def kind(self, path: str) -> Kind | None:
        """What lies at the path; None if nothing does."""

    def listing(self, path: str) -> Listing:
        """All files and folders below a folder, without hidden ones, in any order; of a file, the file alone."""

    def read(self, path: str) -> bytes:
        """The content of a file."""

    def view(self, path: str) -> pa.Buffer:
        """The content of a large file, mapped into memory if possible."""


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden or a file manager's litter. name: a relative path."""
    return any(part.startswith((".", "__MACOSX")) or part.lower() in LITTER for part in name.split("/"))
