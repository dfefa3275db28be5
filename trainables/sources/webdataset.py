"""The layout of WebDataset: KEY.jpg and KEY.cls side by side, usually in tar archives that are called shards."""

from kdstudy.trainables.images import Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.assembly import assembled
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.decoding import Encoded
from kdstudy.trainables.sources.labels import first_few, from_text, split_in
from kdstudy.trainables.sources.location import Location
from kdstudy.trainables.sources.store import IMAGE_SUFFIXES, LABEL_SUFFIX

LONGEST_LABEL = 1000  # bytes


def recognises(location: Location, settings: DataSettings) -> bool:
    return not location.is_file and any(_key(file.name)[1] == LABEL_SUFFIX for file in location.files)


def read(location: Location, settings: DataSettings) -> Raw:
    """The samples; a split is named in the name of a shard, such as train-0000.tar. Raises ValueError."""
    where = f"data.source = {location.source!r}"
    images = _by_key(location, IMAGE_SUFFIXES, where)
    labels = _by_key(location, (LABEL_SUFFIX,), where)
    splits: dict[str, list[str]] = {}
    for key in images:
        splits.setdefault(split_in(key.rpartition("/")[0]) or "train", []).append(key)
    if "train" not in splits:
        raise ValueError(f"{where} has shards of {' and '.join(splits)} but none of train, such as train-0000.tar")
    words = {split: [_label(location, labels[key], where) if key in labels else None for key in keys]
             for split, keys in splits.items()}
    _check_complete(splits, labels, where)
    numbered = from_text(words, where)
    listed = {split: ([Encoded(images[key], lambda file=images[key]: location.read(file)) for key in keys],
                      numbered[split]) for split, keys in splits.items()}
    return assembled(listed, settings, notes=location.notes)


def _key(name: str) -> tuple[str, str]:
    """A file's key and suffix: all that is before, and from, the first dot of its name, with its folder."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _by_key(location: Location, suffixes: tuple[str, ...], where: str) -> dict[str, str]:
    """The names of the files with one of these suffixes, by key. Raises ValueError if two have one key."""
    found: dict[str, str] = {}
    for file in location.files:
        key, suffix = _key(file.name)
        if suffix in suffixes and found.setdefault(key, file.name) != file.name:
            raise ValueError(f"{where}: {found[key]} and {file.name} are of one key; a sample has one image and one "
                             "label")
    return found


def _check_complete(splits: dict[str, list[str]], labels: dict[str, str], where: str) -> None:
    """Raises ValueError if only some images of a split have a label."""
    for split, keys in splits.items():
        missing = [key for key in keys if key not in labels]
        if missing and (split == "train" or len(missing) < len(keys)):
            raise ValueError(f"{where}: {len(missing)} images of its {split} split have no {LABEL_SUFFIX} file: "
                             f"{first_few(missing)}")


def _label(location: Location, file: str, where: str) -> str:
    """A label as its file has it. Raises ValueError."""
    try:
        content = location.read(file)
        if len(content) > LONGEST_LABEL:
            raise ValueError("it is too long for a label")
        return content.decode().strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {file} cannot be read as a label ({error}); it must hold a class number or word"
                         ) from None


SOURCE = FileSource("KEY.jpg with KEY.cls, as in WebDataset's shards", recognises, read)
