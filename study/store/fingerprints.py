"""Fingerprints of settings, images and files, which name the folders of stages."""

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

# Increase when the format of a stage's files changes, so that folders in an old format are not reused.
FORMAT = 2


def fingerprint(*parts: Any) -> str:
    """Return ten hexadecimal digits that depend on all `parts` (JSON values)."""
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
    """Return the hash of a user's input file. Cached until the file changes, since fingerprints are computed often."""
    status = path.stat()
    return _hash_known(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _hash_known(path: Path, size: int, changed: int) -> str:
    return hash_file(path)


def changed(settings: Settings, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the settings that differ from their defaults, so that adding a setting keeps existing fingerprints."""
    return settings.model_dump(exclude_defaults=True, exclude=set(exclude))


def model_inputs(section: str, settings: ModelSettings) -> dict[str, Any]:
    """Return a model's settings for a fingerprint. A weights file is identified by its content, not its path."""
    inputs = changed(settings)
    if isinstance(settings.pretrained, str):
        inputs["pretrained"] = hash_input(existing(settings.pretrained, f"{section}.pretrained"))
    if ":" in settings.model:  # a function: hash its file, since the name says nothing about the code
        inputs["source"] = function_hash(settings.model, f"{section}.model")
    return inputs


def function_hash(name: str, setting: str) -> str:
    """Return the hash of the file of package.module:function. Raises UserError that names the setting."""
    try:
        return hash_input(functions.source_file(name, setting))
    except ValueError as error:
        raise UserError(str(error)) from None


def existing(path: str, setting: str, folder: bool = False) -> Path:
    """Return the file or folder that a setting names. Raises UserError where it does not exist."""
    found = Path(os.path.expanduser(path))
    if not found.exists():
        raise UserError(f"{setting}: {path} does not exist")
    if found.is_dir() != folder:
        raise UserError(f"{setting}: {path} is {'a file, not a folder' if folder else 'a folder, not a file'}")
    return found
