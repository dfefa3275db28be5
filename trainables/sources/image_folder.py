"""A folder of image files: train/CLASS/*, maybe val/ and test/ as well; or CLASS/*, of which shares are held out."""

import os
from collections import Counter

import numpy as np

from kdstudy.trainables.images import Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.assembly import ORDER, assembled
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.decoding import Encoded
from kdstudy.trainables.sources.labels import SPLIT_NAMES, is_metadata, left_out
from kdstudy.trainables.sources.location import Location
from kdstudy.trainables.sources.store import IMAGE_SUFFIXES

ClassFiles = dict[str, list[str]]  # the names of a class's image files, by class
MOST_SUFFIXES = 3  # to name in a note
TEXT_SUFFIXES = (".txt", ".json", ".xml", ".csv", ".md", ".html", ".yaml", ".yml")  # what is said about images


def recognises(location: Location, settings: DataSettings) -> bool:
    return not location.is_file and any(file.is_image for file in location.files)


def read(location: Location, settings: DataSettings) -> Raw:
    """The folder's splits; classes are in order of their names. Raises ValueError."""
    where = f"data.source = {location.source!r}"
    folders = _split_folders(location, where)
    unlabelled = {split: why for split, folder in folders.items() if split != "train"
                  and (why := _why_unlabelled(location, folder, folders["train"]))}
    classes = {split: _class_files(location, folder, where) for split, folder in folders.items()
               if split not in unlabelled}
    if settings.classes is None:
        _check_not_empty(classes, where)
    splits = {}
    for split, found in classes.items():
        files = [(file, name) for name in sorted(found) for file in found[name]]
        splits[split] = ([Encoded(file, lambda file=file: location.read(file)) for file, _ in files],
                         np.array([name for _, name in files], object))
    notes = [*location.notes, *_other_files(location, folders), *_metadata_note(location),
             *(left_out(split, why) for split, why in unlabelled.items())]
    names = sorted({name for found in classes.values() for name in found})
    return assembled(splits, settings, tuple(names), notes)


def _split_folders(location: Location, where: str) -> dict[str, str]:
    """The folder of each split, training first; the location itself, "", if there are only class folders."""
    below = _names_in(location, "")
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


def _names_in(location: Location, folder: str) -> set[str]:
    """The names of the folders in a folder, and of those that have files anywhere below."""
    prefix = f"{folder}/" if folder else ""
    inside = [name[len(prefix):] for name in location.folders if name.startswith(prefix)]
    return {name.split("/")[0] for name in
            [*inside, *(file.name[len(prefix):] for file in location.files
                        if file.name.startswith(prefix) and "/" in file.name[len(prefix):])]}


def _why_unlabelled(location: Location, folder: str, train: str) -> str | None:
    """Why the images of a split have no labels, as in Kaggle's test folders; None if they seem to have some."""
    classes, images = _names_in(location, folder), [file.name for file in location.files if file.is_image
                                                    and file.name.startswith(f"{folder}/")]
    if not images:
        return f"there is no image in {folder}/"
    if not classes:
        return f"its {len(images)} images are not in class folders"
    if len(classes) == 1 and not classes & _names_in(location, train):
        return f"its {len(images)} images are all in one folder, {folder}/{min(classes)}, which is no class of train"
    return None


def _class_files(location: Location, folder: str, where: str) -> ClassFiles:
    """The image files of every class folder in `folder`, at any depth. Raises ValueError for images outside of one."""
    prefix = f"{folder}/" if folder else ""
    found: ClassFiles = {name[len(prefix):]: [] for name in location.folders
                         if name.startswith(prefix) and "/" not in name[len(prefix):]}
    for file in location.files:
        if not file.name.startswith(prefix) or not file.is_image:
            continue
        name, slash, _ = file.name[len(prefix):].partition("/")
        if not slash:
            raise ValueError(f"{where}: {file.name} is not in a class folder; images go into {prefix}CLASS/, or a CSV "
                             "file lists them with their labels: data.labels = \"labels.csv\"")
        found.setdefault(name, []).append(file.name)
    return found


def _check_not_empty(classes: dict[str, ClassFiles], where: str) -> None:
    """Raises ValueError for a class folder without an image."""
    for split, found in classes.items():
        for name, files in found.items():
            if not files:
                raise ValueError(f"{where}: class {name!r} has no image in its {split} split; add images, or remove "
                                 "the folder")


def _other_files(location: Location, folders: dict[str, str]) -> list[str]:
    """A note about files among the images that may be images, but are not called like those that are read."""
    above = [f"{folder}/" if folder else "" for folder in folders.values()]
    others = [file.name for file in location.files
              if not file.is_image and not file.name.lower().endswith(TEXT_SUFFIXES)
              and any(file.name.startswith(prefix) and "/" in file.name[len(prefix):] for prefix in above)]
    if not others:
        return []
    suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in others)
    shown = ", ".join(suffix for suffix, _ in suffixes.most_common(MOST_SUFFIXES))
    one = len(others) == 1
    return [f"{len(others)} file{'' if one else 's'} among the images {'is' if one else 'are'} of a kind that is not "
            f"read ({shown}{', …' if len(suffixes) > MOST_SUFFIXES else ''}; first: {others[0]})"]


def _metadata_note(location: Location) -> list[str]:
    found = next((file.name for file in location.files if is_metadata(file.name)), None)
    return [f"{found} is not read, because the images lie in class folders; data.labels = \"{found}\" takes the labels "
            "from there"] if found else []


SOURCE = FileSource(f"train/CLASS/* and for CLASS/* ({', '.join(IMAGE_SUFFIXES[:4])}, …)", recognises, read)
