"""A folder of image files: train/CLASS/*, maybe val/ and test/ as well; or CLASS/*, of which shares are held out."""

import numpy as np

from kdstudy.trainables.images import Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.cache import cached
from kdstudy.trainables.sources.decoding import Encoded, decode
from kdstudy.trainables.sources.labels import SPLIT_NAMES, first_few
from kdstudy.trainables.sources.location import Location

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ORDER = ("train", "validation", "test")
ClassFiles = dict[str, list[str]]  # the names of a class's image files, by class


def recognises(location: Location) -> bool:
    return not location.is_file and any(file.name.lower().endswith(SUFFIXES) for file in location.files)


def read(location: Location, settings: DataSettings) -> Raw:
    """The folder's splits; classes are in order of their names. Raises ValueError."""
    return cached(location, settings, lambda: _decode_folder(location, settings))


def _decode_folder(location: Location, settings: DataSettings) -> Raw:
    where = f"data.source = {location.source!r}"
    folders = _split_folders(location, where)
    classes = {split: _class_files(location, folder, where) for split, folder in folders.items()}
    _check_classes(classes, where)
    names = sorted(classes["train"])
    encoded = {}
    for split, found in classes.items():
        files = [(file, index) for index, name in enumerate(names) for file in found[name]]
        encoded[split] = ([Encoded(file, lambda file=file: location.read(file)) for file, _ in files],
                          np.array([index for _, index in files], np.int64))
    return Raw.from_splits(tuple(names), decode(encoded, settings))


def _split_folders(location: Location, where: str) -> dict[str, str]:
    """The folder of each split, training first; the location itself, "", if there are only class folders."""
    below = {name.split("/")[0] for name in [*location.folders, *(file.name for file in location.files
                                                                  if "/" in file.name)]}
    splits = {folder: SPLIT_NAMES[folder.lower()] for folder in below if folder.lower() in SPLIT_NAMES}
    if "train" not in splits.values() and below - set(splits):
        splits = {}  # classes that happen to have such names
    if not splits:
        return {"train": ""}
    if "train" not in splits.values():
        raise ValueError(f"{where} has {', '.join(sorted(splits))} but no train folder")
    for split in ORDER:
        folders = sorted(folder for folder in splits if splits[folder] == split)
        if len(folders) > 1:
            raise ValueError(f"{where} has two folders for one split: {', '.join(folders)}; remove one")
    return {split: folder for split in ORDER for folder in splits if splits[folder] == split}


def _class_files(location: Location, folder: str, where: str) -> ClassFiles:
    """The image files of every class folder in `folder`, at any depth. Raises ValueError for images outside of one."""
    prefix = f"{folder}/" if folder else ""
    found: ClassFiles = {name[len(prefix):]: [] for name in location.folders
                         if name.startswith(prefix) and "/" not in name[len(prefix):]}
    for file in location.files:
        if not file.name.startswith(prefix) or not file.name.lower().endswith(SUFFIXES):
            continue
        name, slash, _ = file.name[len(prefix):].partition("/")
        if not slash:
            raise ValueError(f"{where}: {file.name} is not in a class folder; images go into {prefix}CLASS/")
        found.setdefault(name, []).append(file.name)
    return found


def _check_classes(classes: dict[str, ClassFiles], where: str) -> None:
    """Raises ValueError unless all splits have the same classes, each with an image."""
    names = set(classes["train"])
    for split, found in classes.items():
        for what, missing in (("lacks", names - set(found)), ("adds", set(found) - names)):
            if missing:
                raise ValueError(f"{where}: the classes of train and {split} differ: {split} {what} "
                                 f"{first_few(missing)}")
        for name, files in found.items():
            if not files:
                raise ValueError(f"{where}: class {name!r} has no image in its {split} split; add images, or remove "
                                 "the folder")


SOURCE = FileSource(f"train/CLASS/* and for CLASS/* ({', '.join(SUFFIXES[:4])}, …)", recognises, read)
