"""What a source is: a name and a reader, or a layout of files and a reader.

Every reader returns images that are square and of one size, as uint8 arrays. It raises ValueError, in one line that
names the setting or the file, if the images cannot be read.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kdstudy.trainables.images import Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.location import Location


@dataclass(frozen=True)
class NamedSource:
    """Data sets that `data.source` calls by name, such as "digits".

    read: returns the data set that `data.source` names.
    """

    names: tuple[str, ...]
    read: Callable[[DataSettings], Raw]


@dataclass(frozen=True)
class FileSource:
    """One layout of files at a path or URI, such as a folder for each class.

    looked_for: describes the layout in an error message, after "looked for". recognises: tells, from names and settings
    alone, whether a location has this layout. is_cached: whether decoded images are kept on disk for the next time.
    """

    looked_for: str
    recognises: Callable[[Location, DataSettings], bool]
    read: Callable[[Location, DataSettings], Raw]
    is_cached: bool = True
