"""Digests of settings, images and files, by which a stage's folder is named."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdstudy.errors import UserError
from kdstudy.trainables import functions
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.settings import ModelSettings, Settings

# Raised when the meaning of a stage's files changes, so that older folders are not taken for current ones.
FORMAT = 2


def fingerprint(*parts: Any) -> str:
    """Ten hexadecimal digits that change with anything in `parts` (JSON values)."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def hash_images(images: ImageSet) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in (images.images, images.labels):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def hash_input(path: Path) -> str:
    """The hash of a file that a user hands in. Fingerprints ask often, so it is read again only if it has changed."""
    status = path.stat()
    return _hash_known(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _hash_known(path: Path, size: int, changed: int) -> str:
    return hash_file(path)


def changed(settings: Settings, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that differ from their defaults: a new setting leaves the fingerprints of older studies alone."""
    return settings.model_dump(exclude_defaults=True, exclude=set(exclude))


def model_inputs(section: str, settings: ModelSettings) -> dict[str, Any]:
    """A model's settings for a fingerprint: a weights file counts by its content, wherever it lies."""
    inputs = changed(settings)
    if isinstance(settings.pretrained, str):
        inputs["pretrained"] = hash_input(existing(settings.pretrained, f"{section}.pretrained"))
    if ":" in settings.model:  # a function: its name says little, so its file counts
        try:
            inputs["source"] = hash_input(functions.source_file(settings.model))
        except ValueError as error:
            raise UserError(f"{section}.{error}") from None
    return inputs


def existing(path: str, setting: str, folder: bool = False) -> Path:
    """A file or folder that a setting names. Raises UserError."""
    found = Path(os.path.expanduser(path))
    if not found.exists():
        raise UserError(f"{setting}: {path} does not exist")
    if found.is_dir() != folder:
        raise UserError(f"{setting}: {path} is {'a file, not a folder' if folder else 'a folder, not a file'}")
    return found
