"""Decoded images on disk, so that the same files are decoded only once."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np

from kdstudy.trainables.images import ImageSet, Raw, Unreadable
from kdstudy.trainables.paths import cache_folder, remove
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.location import Location

CACHE_FORMAT = 3  # raise it when decoding or the files below change: older ones are then no longer found
# All settings that reading uses; the others are for what is done with the images.
READING = ("stored_size", "image_size", "label_column", "image_column", "labels", "stretch", "skip_unreadable")
DESCRIPTION = "description.json"


def cached(location: Location, settings: DataSettings, read: Callable[[], Raw]) -> Raw:
    """What `read` returns, taken from the cache if there, else kept in it. Cached arrays are memory-mapped.

    A change of any file at the location, or of a setting that decoding uses, leads to another entry. A damaged entry is
    removed.
    """
    folder = cache_folder() / "images" / _key(location, settings)
    if (folder / DESCRIPTION).exists():
        try:
            return _load(folder)
        except (OSError, ValueError, KeyError, TypeError):
            remove(folder, folder.parent, if_possible=True)
    raw = read()
    with contextlib.suppress(OSError):  # without a cache, on a full or read-only disk, the next run only takes longer
        _save(raw, folder)
    return raw


def _key(location: Location, settings: DataSettings) -> str:
    # Whether there is a subset: what must be of the same classes depends on it.
    parts = [CACHE_FORMAT, location.path, *(getattr(settings, name) for name in READING), settings.classes is None,
             location.notes, *((file.name, file.size, file.changed) for file in location.files), *location.folders]
    return hashlib.blake2b(repr(parts).encode(), digest_size=10).hexdigest()


def _save(raw: Raw, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as draft:
        for name, images in raw.splits.items():
            np.save(Path(draft) / f"{name}-images.npy", images.images)
            np.save(Path(draft) / f"{name}-labels.npy", images.labels)
        description = {"classes": raw.class_names, "notes": raw.notes, "unreadable": list(map(astuple, raw.unreadable))}
        (Path(draft) / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
        os.chmod(draft, 0o755)
        if not folder.exists():
            os.rename(draft, folder)
            os.mkdir(draft)  # the context manager removes it


def _load(folder: Path) -> Raw:
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    splits = {}
    for name in ("train", "validation", "test"):
        if (path := folder / f"{name}-images.npy").exists():
            splits[name] = ImageSet(np.load(path, mmap_mode="r"), np.load(folder / f"{name}-labels.npy"))
    return Raw.from_splits(tuple(description["classes"]), splits, tuple(description["notes"]),
                           tuple(Unreadable(*one) for one in description["unreadable"]))
