"""Where images come from: digits, torchvision's data sets, image folders, Parquet files and arrays.

Every reader returns `data.Raw`. What is wrong with a source is a ValueError of one line that names it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

from kdstudy.trainables.data import ImageSet, Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.paths import remove
from kdstudy.trainables.settings import DataSettings

SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
          "dev": "validation", "test": "test", "testing": "test"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
NAME_COLUMNS = ("class_name", "label_name", "label_text", "class")
CACHE_FORMAT = 2
MOST_CLASSES = 100_000
CLOUD_SECONDS = 20
# name here: (class in torchvision.datasets, what chooses its training part)
TORCHVISION = {
    "cifar10": ("CIFAR10", "train"), "cifar100": ("CIFAR100", "train"), "mnist": ("MNIST", "train"),
    "fashion-mnist": ("FashionMNIST", "train"), "kmnist": ("KMNIST", "train"), "svhn": ("SVHN", "split"),
    "stl10": ("STL10", "split"),
}
NAMES = ("digits", *TORCHVISION)


def read(settings: DataSettings) -> Raw:
    """Read what `data.source` names. Raises ValueError."""
    if settings.source == "digits":
        raw = _digits()
    elif settings.source in TORCHVISION:
        raw = _torchvision(settings.source)
    else:
        return _read_place(Place(settings.source), settings)
    return _at_stored_size(raw, settings)


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: $KDSTUDY_CACHE, else kdstudy in the user's cache folder."""
    if own := os.environ.get("KDSTUDY_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdstudy"


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    name: str  # relative to the place, with slashes
    size: int
    changed: int  # nanoseconds


class Place:
    """A file or folder, local or at a URI that pyarrow opens."""

    def __init__(self, source: str):
        self.source = source
        if "://" in source:
            try:
                self.files_system, self.path = pafs.FileSystem.from_uri(_with_time_limit(source))
            except (pa.ArrowException, ValueError, OSError) as error:
                raise ValueError(f"data.source = {source!r} cannot be opened: {one_line(error)}") from None
        else:
            self.files_system, self.path = pafs.LocalFileSystem(), str(Path(os.path.expanduser(source)).absolute())
        if self.path in ("/", "/proc", "/sys", str(Path.home())):  # a slip, whose listing would take an hour
            raise ValueError(f"data.source = {source!r} is not a folder of images; name the one that holds them")
        try:
            self.kind = self.files_system.get_file_info(self.path).type
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(f"data.source = {source!r} cannot be opened: {one_line(error)}") from None
        if self.kind == pafs.FileType.NotFound:
            import difflib

            nearest = difflib.get_close_matches(source, NAMES, n=1, cutoff=0.8)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known names: {', '.join(NAMES)}"
            looked = "" if "://" in source or Path(source).is_absolute() else f" (looked for {self.path})"
            raise ValueError(f"data.source = {source!r} is neither a known name nor a file or folder that exists"
                             f"{looked}; {hint}; or say where the images lie with --set data.source=PATH")

    @property
    def files(self) -> list[File]:
        """All files below, by name; hidden ones are left out."""
        return self._found[0]

    @property
    def folders(self) -> list[str]:
        """All folders below, likewise."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[list[File], list[str]]:
        local = isinstance(self.files_system, pafs.LocalFileSystem)
        try:
            files, folders = _walk(self.path) if local else self._list()
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(f"data.source = {self.source!r} cannot be read: {one_line(error)}") from None
        return sorted(files, key=lambda file: file.name), sorted(folders)

    def _list(self) -> tuple[list[File], list[str]]:
        entries = self.files_system.get_file_info(pafs.FileSelector(self.path, recursive=True))
        named = [(info.path[len(self.path.rstrip("/")) + 1:], info) for info in entries]
        named = [(name, info) for name, info in named if not _hidden(name)]
        return ([File(name, info.size, info.mtime_ns or 0) for name, info in named if info.is_file],
                [name for name, info in named if info.type == pafs.FileType.Directory])

    def read(self, name: str = "") -> bytes:
        path = f"{self.path.rstrip('/')}/{name}" if name else self.path
        with self.files_system.open_input_file(path) as file:
            return file.read()


def _walk(place: str) -> tuple[list[File], list[str]]:
    """Files and folders below a local folder. A link that leads back to a folder it lies in is not followed."""
    files, folders, pending = [], [], [("", (os.path.realpath(place),))]
    while pending:
        folder, above = pending.pop()
        for entry in os.scandir(os.path.join(place, folder)):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _hidden(entry.name):
                continue
            if entry.is_file():
                files.append(File(name, entry.stat().st_size, entry.stat().st_mtime_ns))
            elif entry.is_dir() and (real := os.path.realpath(entry.path)) not in above:
                folders.append(name)
                pending.append((name, (*above, real)))
    return files, folders


def _with_time_limit(source: str) -> str:
    """Google's client tries for a quarter of an hour where there is no network, unless it is told otherwise."""
    if source.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in source:
        return f"{source}{'&' if '?' in source else '?'}retry_limit_seconds={CLOUD_SECONDS}"
    return source


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _read_place(place: Place, settings: DataSettings) -> Raw:
    """Tell by what lies there what it is."""
    if place.kind == pafs.FileType.File:
        if not place.path.endswith(".npz"):
            raise ValueError(f"data.source = {place.source!r} is a file of a kind that is not read; give a .npz file, "
                             "or a folder with images or Parquet files")
        return _at_stored_size(_arrays(place), settings)
    if any(file.name.endswith(".parquet") for file in place.files):
        return _cached(place, settings, lambda: _parquet(place, settings))
    if any(file.name.lower().endswith(IMAGE_SUFFIXES) for file in place.files):
        return _cached(place, settings, lambda: _image_folder(place, settings))
    raise ValueError(f"data.source = {place.source!r} holds no images: looked for train*.parquet and test*.parquet, "
                     f"for train/CLASS/* and for CLASS/* ({', '.join(IMAGE_SUFFIXES[:4])}, …), and for a .npz file")


# -- names ------------------------------------------------------------------------------------------------------------


def _digits() -> Raw:
    """The 1797 handwritten digits of 8x8 pixels that scikit-learn ships; their 17 grey levels become 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return Raw(tuple(str(name) for name in bunch.target_names), ImageSet(images, bunch.target.astype(np.int64)))


def _torchvision(name: str) -> Raw:
    """A data set of torchvision, downloaded once. Its files are checked against torchvision's own digests."""
    from torchvision import datasets

    class_name, chooser = TORCHVISION[name]
    make, root = getattr(datasets, class_name), cache_folder() / "torchvision"
    parts = []
    for split in ("train", "test"):
        choice = {chooser: split == "train" if chooser == "train" else split}
        try:
            parts.append(make(root, **choice, download=False))
        except (RuntimeError, OSError):
            parts.append(_download(name, make, root, choice))
    train, test = parts
    names = getattr(train, "classes", None) or [str(digit) for digit in range(10)]
    return Raw(tuple(names), _torchvision_images(train), test=_torchvision_images(test))


def _download(name: str, make: type, root: Path, choice: dict) -> object:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return make(root, **choice, download=True)
    except Exception as error:
        raise ValueError(
            f"data.source = {name!r} could not be downloaded ({one_line(error)[:80]}): put "
            f"{_wanted_files(make, root)}; or set data.source to a folder or file that holds the images"
        ) from None


def _wanted_files(make: type, root: Path) -> str:
    """Which files torchvision looks for, and where."""
    if filename := getattr(make, "filename", None):
        return f"{filename} (from {make.url}) into {root}"
    if resources := getattr(make, "resources", None):
        names, raw = ", ".join(name for name, _ in resources), root / make.__name__ / "raw"
        return f"{names} (from {make.mirrors[0]}) into {raw}"
    wanted = [make.split_list[split] for split in ("train", "test")]
    return f"{', '.join(entry[1] for entry in wanted)} (from {wanted[0][0].rsplit('/', 1)[0]}/) into {root}"


def _torchvision_images(part: object) -> ImageSet:
    images = np.asarray(part.data)
    labels = np.asarray(part.targets if hasattr(part, "targets") else part.labels).astype(np.int64)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    return ImageSet(np.ascontiguousarray(images), labels)


# -- arrays -----------------------------------------------------------------------------------------------------------


def _arrays(place: Place) -> Raw:
    """A .npz file: images and labels, or train_images, train_labels, val_images, …; class_names may be there."""
    where = f"data.source = {place.source!r}"
    try:
        content = place.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where} cannot be read: {one_line(error)}") from None
    if not content.startswith(b"PK"):
        raise ValueError(f"{where} is not a .npz file; numpy.savez writes one")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        if "pickle" in str(error):
            raise ValueError(f"{where} holds Python objects, which are not read; save plain arrays") from None
        raise ValueError(f"{where} is a damaged .npz file: {one_line(error)}") from None
    found = {}
    for prefix, split in {"": "train", **{f"{word}_": split for word, split in SPLITS.items()}}.items():
        if f"{prefix}images" in arrays and f"{prefix}labels" in arrays:
            found[split] = _checked_arrays(arrays[f"{prefix}images"], arrays[f"{prefix}labels"], f"{where}, {prefix}")
    if "train" not in found:
        raise ValueError(f"{where} needs arrays called images and labels, or train_images and train_labels; it has "
                         f"{', '.join(arrays) or 'none'}")
    count = max(int(images.labels.max(initial=-1)) for images in found.values()) + 1
    _check_count(count, where)
    names = arrays.get("class_names", np.arange(count))
    if names.ndim != 1:
        raise ValueError(f"{where}: class_names have the shape {names.shape}; they must be a list")
    return Raw(tuple(map(str, names)), found["train"], found.get("validation"), found.get("test"))


def _check_count(largest: int, where: str) -> None:
    if largest > MOST_CLASSES:
        raise ValueError(f"{where}: labels go up to {largest}; they must be class numbers, counted from 0")


def _checked_arrays(images: np.ndarray, labels: np.ndarray, where: str) -> ImageSet:
    if images.dtype != np.uint8:
        raise ValueError(f"{where}images are {images.dtype}; they must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"{where}images have the shape {images.shape}; they must be (N, H, W), (N, H, W, C) or "
                         "(N, C, H, W) with 1 or 3 channels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{where}labels are {labels.dtype} of the shape {labels.shape}; they must be integers (N,)")
    if len(images) != len(labels):
        raise ValueError(f"{where}images are {len(images)}, but its labels {len(labels)}")
    return ImageSet(np.ascontiguousarray(images), labels.astype(np.int64))


def _at_stored_size(raw: Raw, settings: DataSettings) -> Raw:
    """Bring images that are already arrays to one square size, where that is needed or wanted."""
    parts = [images for images in (raw.train, raw.validation, raw.test) if images is not None]
    sizes = {images.images.shape[:1:-1] for images in parts}
    size = _stored_size(sizes, settings)
    if size is None:
        return raw
    _check_memory(sum(len(images) for images in parts) * raw.train.images.shape[1] * size**2,
                  f"data.source = {settings.source!r}")

    def shrink(images: ImageSet | None) -> ImageSet | None:
        if images is None:
            return None
        channels = images.images.shape[1]
        pictures = (Image.fromarray(image.transpose(1, 2, 0) if channels == 3 else image[0]) for image in images.images)
        return ImageSet(np.stack([_pixels(_square(picture, size), channels) for picture in pictures]), images.labels)

    return Raw(raw.class_names, shrink(raw.train), shrink(raw.validation), shrink(raw.test))


# -- encoded images ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """An image that is still to be decoded, and what to call it in a message."""

    name: str
    read: Callable[[], bytes]


def _stored_size(sizes: set[tuple[int, int]], settings: DataSettings) -> int | None:
    """The size (pixels) that images of these (width, height) are brought to; None where they stay as they are."""
    (width, height), alike = min(sizes), len(sizes) == 1
    if alike and width == height and (settings.stored_size is None or width <= settings.stored_size):
        return None
    wanted = settings.stored_size or settings.image_size
    if wanted is None:
        seen = f"{width}x{height}" if alike else f"from {width}x{height} to {'x'.join(map(str, max(sizes)))}"
        raise ValueError(f"data.source = {settings.source!r}: images are not all square and of one size ({seen}); set "
                         "data.stored_size, in pixels, e.g. data.stored_size = 224")
    return wanted


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey to white; here its range becomes that of 8 bits. Raises ValueError for what has none."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels have no range of their own; save it with 8 or 16 bits")
    return picture


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, then the middle: what is done to photographs before a test."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    array = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return array.transpose(2, 0, 1) if channels == 3 else array[None]


def _decode(splits: dict[str, tuple[Sequence[Encoded], np.ndarray]], settings: DataSettings) -> dict[str, ImageSet]:
    """Decode all images of all splits, on all cores, to uint8 arrays of one size and number of channels."""
    where = f"data.source = {settings.source!r}"

    def look(image: Encoded) -> tuple[tuple[int, int], bool]:
        with _opened(image, where) as picture:
            return picture.size, picture.mode in ("1", "L") or picture.mode.startswith("I;16")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = {name: list(pool.map(look, images)) for name, (images, _) in splits.items()}
        sizes = {size for seen in looks.values() for size, _ in seen}
        if not sizes:
            raise ValueError(f"{where}: there are no images")
        channels = 1 if all(grey for seen in looks.values() for _, grey in seen) else 3
        target = _stored_size(sizes, settings)
        side = target or min(sizes)[0]
        _check_memory(sum(len(images) for images, _ in splits.values()) * channels * side**2, where)
        decoded = {}
        for name, (images, labels) in splits.items():
            array = np.empty((len(images), channels, side, side), np.uint8)

            def fill(index: int, array: np.ndarray = array, images: Sequence[Encoded] = images) -> None:
                with _opened(images[index], where) as picture:
                    try:
                        picture = _eight_bit(picture)
                        array[index] = _pixels(_square(picture, target) if target else picture, channels)
                    except (OSError, ValueError, SyntaxError) as error:
                        raise _corrupt(images[index], where, error) from None

            list(pool.map(fill, range(len(images)), chunksize=64))
            decoded[name] = ImageSet(array, labels)
    return decoded


def _check_memory(needed: int, where: str) -> None:
    """Images are kept in memory, as uint8. Raises ValueError where they cannot fit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * memory:
        raise ValueError(f"{where}: its images take {needed / 2**30:.0f} GiB of this machine's "
                         f"{memory / 2**30:.0f} GiB of memory; make data.stored_size smaller, or give a folder with "
                         "fewer images")


def _opened(image: Encoded, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image.read()))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _corrupt(image, where, error) from None


def _corrupt(image: Encoded, where: str, error: Exception) -> ValueError:
    reason = "it is no image" if "cannot identify" in str(error) else one_line(error)
    return ValueError(f"{where}: {image.name} cannot be decoded ({reason}); remove it or replace it")


# -- image folder -----------------------------------------------------------------------------------------------------


def _image_folder(place: Place, settings: DataSettings) -> Raw:
    """train/<class>/*, optionally val/ and test/; or <class>/*, of which shares are held out."""
    where = f"data.source = {place.source!r}"
    tops = {name.split("/")[0] for name in [*place.folders, *(file.name for file in place.files if "/" in file.name)]}
    splits = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    if "train" not in splits.values() and set(tops) - set(splits):
        splits = {}  # classes that happen to be called so
    if splits and "train" not in splits.values():
        raise ValueError(f"{where} has {', '.join(sorted(splits))} but no train folder")
    for split in ("train", "validation", "test"):
        tops = sorted(top for top in splits if splits[top] == split)
        if len(tops) > 1:
            raise ValueError(f"{where} has two folders for one split: {', '.join(tops)}; remove one")
    classes: dict[str, dict[str, list[str]]] = {}
    order = sorted(splits, key=lambda top: ("train", "validation", "test").index(splits[top]))
    for top, split in {top: splits[top] for top in order}.items() or [("", "train")]:
        classes[split] = _class_files(place, top, where)
    names = sorted(classes["train"])
    for split, found in classes.items():
        for what, missing in (("lacks", set(names) - set(found)), ("adds", set(found) - set(names))):
            if missing:
                raise ValueError(f"{where}: the classes of train and {split} differ: {split} {what} "
                                 f"{_some(sorted(missing))}")
        for name, files in found.items():
            if not files:
                raise ValueError(f"{where}: class {name!r} has no image in its {split} split; add images, or remove "
                                 "the folder")
    encoded = {}
    for split, found in classes.items():
        files = [(file, index) for index, name in enumerate(names) for file in found[name]]
        encoded[split] = ([Encoded(file, lambda file=file: place.read(file)) for file, _ in files],
                          np.array([index for _, index in files], np.int64))
    decoded = _decode(encoded, settings)
    return Raw(tuple(names), decoded["train"], decoded.get("validation"), decoded.get("test"))


def _class_files(place: Place, top: str, where: str) -> dict[str, list[str]]:
    """Per class folder under `top`, its image files, in folders below it too."""
    prefix = f"{top}/" if top else ""
    found: dict[str, list[str]] = {name[len(prefix):]: [] for name in place.folders
                                   if name.startswith(prefix) and "/" not in name[len(prefix):]}
    for file in place.files:
        if not file.name.startswith(prefix) or not file.name.lower().endswith(IMAGE_SUFFIXES):
            continue
        name, slash, _ = file.name[len(prefix):].partition("/")
        if not slash:
            raise ValueError(f"{where}: {file.name} lies in no class folder; images go into {prefix or ''}CLASS/")
        found.setdefault(name, []).append(file.name)
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(place: Place, settings: DataSettings) -> Raw:
    """Parquet in the Hugging Face layout: an image column of structs with bytes, and a label column."""
    where = f"data.source = {place.source!r}"
    tables: dict[str, list[tuple[str, pa.Table]]] = {}
    for file in place.files:
        if not file.name.endswith(".parquet") or (split := _split_of(file.name)) is None:
            continue
        try:
            table = _plain_columns(pq.read_table(io.BytesIO(place.read(file.name))))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{where}: {file.name} is not a Parquet file: {one_line(error)}") from None
        tables.setdefault(split, []).append((file.name, table))
    if "train" not in tables:
        raise ValueError(f"{where} has Parquet files, but none called train*.parquet")
    schema = tables["train"][0][1].schema
    image_column, label_column = _image_column(schema, where), _label_column(schema, settings, where)
    kind = "words" if _is_text(schema.field(label_column).type) else "integers"
    for name, table in (part for parts in tables.values() for part in parts):
        for column in (image_column, label_column):
            if column not in table.column_names:
                raise ValueError(f"{where}: {name} has no column {column!r}; it has {', '.join(table.column_names)}")
        found = table.schema.field(label_column).type
        if not (_is_text(found) if kind == "words" else pa.types.is_integer(found)):
            raise ValueError(f"{where}: the labels of {name}, {label_column}, are {found}; they must be integers or "
                             "words, the same in all files")
    names = _class_names(tables, label_column, where)
    encoded = {}
    for split, parts in tables.items():
        images, labels = [], []
        for name, table in parts:
            images += _encoded_rows(name, table[image_column], where)
            labels.append(_labels(name, table[label_column], names, where))
        encoded[split] = (images, np.concatenate(labels))
    decoded = _decode(encoded, settings)
    return Raw(names, decoded["train"], decoded.get("validation"), decoded.get("test"))


def _plain_columns(table: pa.Table) -> pa.Table:
    """Categories, as pandas writes them, as what they stand for."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return table


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _split_of(name: str) -> str | None:
    """train-00000-of-00002.parquet, train.parquet, data/train-….parquet, default/train/0000.parquet"""
    parts = name.removesuffix(".parquet").split("/")
    for part in reversed(parts):
        word = re.match(r"[a-z]+", part.lower())
        if word and word[0] in SPLITS:
            return SPLITS[word[0]]
    return None


def _image_column(schema: pa.Schema, where: str) -> str:
    columns = [field.name for field in schema if pa.types.is_struct(field.type) and _holds_bytes(field.type)]
    if len(columns) != 1:
        raise ValueError(f"{where}: needs one image column, a struct with bytes; it has "
                         f"{', '.join(columns) or 'none'} among {', '.join(schema.names)}")
    return columns[0]


def _holds_bytes(kind: pa.StructType) -> bool:
    index = kind.get_field_index("bytes")
    return index >= 0 and (pa.types.is_binary(kind[index].type) or pa.types.is_large_binary(kind[index].type))


def _label_column(schema: pa.Schema, settings: DataSettings, where: str) -> str:
    if settings.label_column:
        if settings.label_column not in schema.names:
            raise ValueError(f"data.label_column = {settings.label_column!r} is not a column; there are "
                             f"{', '.join(schema.names)}")
        return settings.label_column
    kinds = {field.name: field.type for field in schema}
    usable = [name for name, kind in kinds.items() if pa.types.is_integer(kind)] or [
        name for name, kind in kinds.items() if _is_text(kind)]
    for name in ("fine_label", "label", "labels"):
        if name in kinds:
            return name
    if not usable:
        raise ValueError(f"{where}: no column can hold labels, which are integers or words; there are "
                         f"{', '.join(schema.names)}")
    if len(usable) > 1:
        raise ValueError(f"{where}: which column holds the labels? Set data.label_column to one of "
                         f"{', '.join(usable)}")
    return usable[0]


def _class_names(tables: dict[str, list[tuple[str, pa.Table]]], column: str, where: str) -> tuple[str, ...]:
    """From the labels themselves if they are words, from the schema's metadata, from a column of names, or numbers."""
    every = [table for parts in tables.values() for _, table in parts]
    if _is_text(every[0].schema.field(column).type):
        words = {split: set().union(*(table[column].unique().to_pylist() for _, table in parts)) - {None}
                 for split, parts in tables.items()}
        for split, found in words.items():
            if found != words["train"]:
                raise ValueError(f"{where}: the classes of train and {split} differ: "
                                 f"{_some(sorted(found ^ words['train']))}")
        return tuple(sorted(words["train"]))
    if names := _described_names(every[0].schema, column):
        return names
    values = sorted(set().union(*(table[column].unique().to_pylist() for table in every)) - {None})
    _check_count(max(values, default=0), where)
    for name_column in (f"{column}_name", *NAME_COLUMNS):
        if all(name_column in table.column_names for table in every):
            pairs = {(label, name) for table in every
                     for label, name in zip(table[column].to_pylist(), table[name_column].to_pylist(), strict=True)}
            if len(pairs) == len(values):
                by_label = dict(pairs)
                return tuple(str(by_label.get(label, label)) for label in range(max(values) + 1))
    return tuple(map(str, range(max(values, default=-1) + 1)))


def _described_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """What Hugging Face's metadata say that the labels stand for; empty where they say nothing."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    if isinstance(names, dict):
        names = list(names.values())
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _labels(name: str, column: pa.ChunkedArray, names: tuple[str, ...], where: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"{where}: {name} has {column.null_count} rows without a label")
    if not _is_text(column.type):
        return column.to_numpy().astype(np.int64)
    numbers = {word: index for index, word in enumerate(names)}
    return np.array([numbers[word] for word in column.to_pylist()], np.int64)


def _encoded_rows(name: str, column: pa.ChunkedArray, where: str) -> list[Encoded]:
    images = []
    for chunk in column.chunks:
        for value in chunk.field("bytes"):
            title = f"{name}, row {len(images)}"
            if not value.is_valid:
                raise ValueError(f"{where}: {title} has no image bytes")
            images.append(Encoded(title, lambda value=value: value.as_buffer()))
    return images


# -- cache ------------------------------------------------------------------------------------------------------------


def _cached(place: Place, settings: DataSettings, read: Callable[[], Raw]) -> Raw:
    """What `read` returns, kept as uint8 arrays for the next time; anything changed at the place changes the key."""
    parts = [CACHE_FORMAT, place.path, settings.stored_size, settings.image_size, settings.label_column,
             *((file.name, file.size, file.changed) for file in place.files), *place.folders]
    folder = cache_folder() / "images" / hashlib.blake2b(repr(parts).encode(), digest_size=10).hexdigest()
    if (folder / "classes.json").exists():
        try:
            return _load_raw(folder)
        except (OSError, ValueError, KeyError):
            remove(folder, folder.parent, if_possible=True)
    raw = read()
    with contextlib.suppress(OSError):  # it is only a cache: a full or read-only disk costs time, no more
        _save_raw(raw, folder)
    return raw


def _save_raw(raw: Raw, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as draft:
        for name in ("train", "validation", "test"):
            if (images := getattr(raw, name)) is not None:
                np.save(Path(draft) / f"{name}-images.npy", images.images)
                np.save(Path(draft) / f"{name}-labels.npy", images.labels)
        (Path(draft) / "classes.json").write_text(json.dumps(raw.class_names), encoding="utf-8")
        os.chmod(draft, 0o755)
        if not folder.exists():
            os.rename(draft, folder)
            os.mkdir(draft)  # for the context manager to remove


def _load_raw(folder: Path) -> Raw:
    def load(name: str) -> ImageSet | None:
        path = folder / f"{name}-images.npy"
        if not path.exists():
            return None
        return ImageSet(np.load(path, mmap_mode="r"), np.load(folder / f"{name}-labels.npy"))

    train = load("train")
    if train is None:
        raise ValueError("incomplete")
    names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    return Raw(tuple(names), train, load("validation"), load("test"))
