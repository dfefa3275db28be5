"""Where images come from: data sets by name, image folders, archives, Parquet files and arrays.

To add a source, write one module that defines SOURCE, as those imported here do, and add one line to SOURCES.
"""

import difflib
from pathlib import Path

from kdstudy.trainables.images import Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources import (
    archives,
    arrays,
    digits,
    image_folder,
    labels_file,
    parquet,
    torchvision_sets,
    webdataset,
)
from kdstudy.trainables.sources.base import FileSource, NamedSource
from kdstudy.trainables.sources.cache import cached
from kdstudy.trainables.sources.labels import first_few
from kdstudy.trainables.sources.location import Location

SOURCES: tuple[NamedSource | FileSource, ...] = (  # the first one that fits is read
    digits.SOURCE,
    torchvision_sets.SOURCE,
    parquet.SOURCE,
    webdataset.SOURCE,
    labels_file.SOURCE,
    image_folder.SOURCE,
    arrays.SOURCE,
)
NAMES = tuple(name for source in SOURCES if isinstance(source, NamedSource) for name in source.names)


def read(settings: DataSettings) -> Raw:
    """Read the images that `data.source` names, or that lie at its path or URI.

    Raises ValueError, in one line that names the setting or the file, if there are none or they cannot be read.
    """
    for source in SOURCES:
        if isinstance(source, NamedSource) and settings.source in source.names:
            _check_no_labels(settings, source)
            return source.read(settings)
    location = Location(settings.source)
    if not location.exists:
        raise ValueError(_not_found(location))
    if (source := _source_of(location, settings)) is not None:
        _check_no_labels(settings, source)
        if source.is_cached:
            raw = cached(location, settings, lambda: source.read(location, settings))
        else:
            raw = source.read(location, settings)
        return raw.noting(archives.note_beside(location, set(raw.splits)))
    if archives.any_in(location):
        return cached(location, settings, lambda: _read_archives(location, settings))
    raise ValueError(_not_recognised(location))


def _source_of(location: Location, settings: DataSettings) -> FileSource | None:
    """The first source that recognises a location's files."""
    return next((source for source in SOURCES
                 if isinstance(source, FileSource) and source.recognises(location, settings)), None)


def _read_archives(location: Location, settings: DataSettings) -> Raw:
    opened = archives.opened(location)
    if settings.labels in {file.name for file in location.files} - {file.name for file in opened.files}:
        there = first_few(file.name for file in location.files if archives.is_archive(file.name))
        raise ValueError(f"data.labels = {settings.labels!r} lies beside the archives in data.source = "
                         f"{settings.source!r}; unpack {there}, or put the file into it")
    if (source := _source_of(opened, settings)) is None:
        raise ValueError(_not_recognised(opened))
    _check_no_labels(settings, source)
    return source.read(opened, settings)


def _check_no_labels(settings: DataSettings, source: NamedSource | FileSource) -> None:
    if settings.labels and source is not labels_file.SOURCE:
        raise ValueError(f"data.labels = {settings.labels!r} is for image files alone, and data.source = "
                         f"{settings.source!r} has labels of its own; remove data.labels")


def _not_found(location: Location) -> str:
    nearest = difflib.get_close_matches(location.source, NAMES, n=1, cutoff=0.8)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known names: {', '.join(NAMES)}"
    is_relative = "://" not in location.source and not Path(location.source).is_absolute()
    tried = f" (looked for {location.path})" if is_relative else ""
    return (f"data.source = {location.source!r} is neither a known name nor an existing file or folder{tried}; "
            f"{hint}; or give the path of your images with --set data.source=PATH")


def _not_recognised(location: Location) -> str:
    *others, last = [source.looked_for for source in SOURCES if isinstance(source, FileSource)]
    what = "is a file of an unknown kind" if location.is_file else "holds no images"
    return f"data.source = {location.source!r} {what}: looked for {', for '.join(others)}, and for {last}"
