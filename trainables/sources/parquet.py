"""Parquet files in the layout of Hugging Face: a column of images, structs with their bytes, and a column of labels.

Images may also be plain bytes, and one file may be all there is.
"""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdstudy.trainables.images import Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.assembly import ORDER, assembled
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.decoding import Encoded
from kdstudy.trainables.sources.labels import (
    HIDDEN,
    SPLIT_NAMES,
    Labels,
    check_column,
    check_largest_label,
    first_few,
    is_words,
    left_out,
    plain_labels,
    split_in,
)
from kdstudy.trainables.sources.location import Location

SUFFIX = ".parquet"
LABEL_COLUMNS = ("fine_label", "label", "labels")  # the first that is there holds the labels
NAME_COLUMNS = ("class_name", "label_name", "label_text", "class")
Tables = dict[str, list[tuple[str, pa.Table]]]  # file names and their tables, by split


def recognises(location: Location, settings: DataSettings) -> bool:
    return any(_is_parquet(file.name) for file in location.files)


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def read(location: Location, settings: DataSettings) -> Raw:
    """The files' splits, by the files' names. Raises ValueError."""
    where = f"data.source = {location.source!r}"
    tables, notes = _read_tables(location, where)
    schema = tables["train"][0][1].schema
    image_column, label_column = _image_column(schema, settings, where), _label_column(schema, settings, where)
    tables, without = _with_labels(tables, label_column)
    _check_columns(tables, image_column, label_column, where)
    splits = {}
    for split, parts in tables.items():
        images = [image for file, table in parts for image in _encoded_rows(file, table[image_column])]
        labels = [_labels(file, table[label_column], where) for file, table in parts]
        splits[split] = (images, np.concatenate(labels))
    names = _class_names(tables, label_column, {split: labels for split, (_, labels) in splits.items()}, where)
    return assembled(splits, settings, names, [*location.notes, *notes, *without])


def _read_tables(location: Location, where: str) -> tuple[Tables, list[str]]:
    """The tables by split, and notes about files of none."""
    names = [file.name for file in location.files if _is_parquet(file.name)]
    splits, notes = _splits_of(names, where)
    tables: Tables = {}
    for name, split in splits.items():
        try:
            table = _plain_columns(pq.read_table(io.BytesIO(location.read(name))))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(f"{where}: {name} is not a Parquet file: {one_line(error)}") from None
        tables.setdefault(split, []).append((name, table))
    return tables, notes


def _splits_of(names: list[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The split of each file that belongs to one, in order, and notes. Raises ValueError if none is for training."""
    splits = {name: _split_of(name) for name in names}
    if "train" not in splits.values():
        splits = {name: split or split_in(name.lower().removesuffix(SUFFIX)) for name, split in splits.items()}
    if "train" not in splits.values():  # no name says training: those that say nothing must be
        splits = {name: split or "train" for name, split in splits.items()}
    if "train" not in splits.values():
        raise ValueError(f"{where} has Parquet files, but none called train*.parquet")
    _check_one_configuration(splits, where)
    others = [name for name, split in splits.items() if split is None]
    notes = [f"{len(others)} Parquet file{'s' if len(others) > 1 else ''} whose names say no split "
             f"{'are' if len(others) > 1 else 'is'} left out (first: {others[0]})"] if others else []
    return {name: split for name, split in splits.items() if split}, notes


def _check_one_configuration(splits: dict[str, str | None], where: str) -> None:
    """Raises ValueError if files of one split are of several configurations, such as 160px/train-… and 320px/train-….
    """
    for split in ORDER:
        folders = {_configuration(name) for name, of in splits.items() if of == split} - {None}
        if len(folders) > 1:
            raise ValueError(f"{where} has Parquet files of its {split} split in several folders, "
                             f"{first_few(folder or '.' for folder in folders)}; name the one that you want in "
                             "data.source")


def _configuration(name: str) -> str | None:
    """The folder above the part of a name that says the split; None if none says one."""
    parts = name.lower().removesuffix(SUFFIX).split("/")
    last = next((place for place in reversed(range(len(parts))) if split_in(parts[place])), None)
    return None if last is None else "/".join(name.split("/")[:last])


def _split_of(name: str) -> str | None:
    """The split of train-00000-of-00002.parquet, train.parquet, data/train-….parquet or default/train/0000.parquet."""
    for part in reversed(name.lower().removesuffix(SUFFIX).split("/")):
        word = re.match(r"[a-z]+", part)
        if word and word[0] in SPLIT_NAMES:
            return SPLIT_NAMES[word[0]]
    return None


def _plain_columns(table: pa.Table) -> pa.Table:
    """Replace categories, which pandas writes, by their values."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return table


def _with_labels(tables: Tables, label_column: str) -> tuple[Tables, list[str]]:
    """The splits that have rows and a column of labels, and notes about the others."""
    without = {}
    for split, parts in tables.items():
        if split != "train" and not any(len(table) for _, table in parts):
            without[split] = "it is empty"
        elif split != "train" and not any(label_column in table.column_names for _, table in parts):
            without[split] = f"its files have no column {label_column!r}"
    return ({split: parts for split, parts in tables.items() if split not in without},
            [left_out(split, why) for split, why in without.items()])


# -- columns ----------------------------------------------------------------------------------------------------------


def _image_column(schema: pa.Schema, settings: DataSettings, where: str) -> str:
    usable = [field.name for field in schema if pa.types.is_struct(field.type) and _has_bytes(field.type)]
    usable = usable or [field.name for field in schema if _is_bytes(field.type)]
    if settings.image_column:
        check_column(schema.names, settings.image_column, "image_column")
        return settings.image_column
    if len(usable) > 1:
        raise ValueError(f"{where}: which column holds the images? Set data.image_column to one of "
                         f"{', '.join(usable)}")
    if not usable:
        raise ValueError(f"{where}: needs one image column, binary or a struct with bytes; the columns are "
                         f"{', '.join(schema.names)}")
    return usable[0]


def _has_bytes(kind: pa.StructType) -> bool:
    index = kind.get_field_index("bytes")
    return index >= 0 and _is_bytes(kind[index].type)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(schema: pa.Schema, settings: DataSettings, where: str) -> str:
    if settings.label_column:
        check_column(schema.names, settings.label_column, "label_column")
        return settings.label_column
    for name in LABEL_COLUMNS:
        if name in schema.names:
            return name
    kinds = {field.name: field.type for field in schema}
    usable = ([name for name, kind in kinds.items() if pa.types.is_integer(kind)]
              or [name for name, kind in kinds.items() if _is_text(kind)]
              or [name for name, kind in kinds.items() if pa.types.is_boolean(kind)])
    if not usable:
        raise ValueError(f"{where}: no column can hold labels, which are integers or words; the columns are "
                         f"{', '.join(schema.names)}")
    if len(usable) > 1:
        raise ValueError(f"{where}: which column holds the labels? Set data.label_column to one of "
                         f"{', '.join(usable)}")
    return usable[0]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_columns(tables: Tables, image_column: str, label_column: str, where: str) -> None:
    """Raises ValueError unless every file has both columns, with images, and with labels of one kind."""
    has_words = _is_text(tables["train"][0][1].schema.field(label_column).type)
    for file, table in (part for parts in tables.values() for part in parts):
        for column in (image_column, label_column):
            if column not in table.column_names:
                raise ValueError(f"{where}: {file} has no column {column!r}; it has {', '.join(table.column_names)}")
        images, kind = (table.schema.field(column).type for column in (image_column, label_column))
        if not (_is_bytes(images) or (pa.types.is_struct(images) and _has_bytes(images))):
            raise ValueError(f"{where}: the column {image_column} of {file} is {images}; images must be binary, or a "
                             "struct with bytes")
        if not (_is_text(kind) if has_words else _is_number(kind)) and not pa.types.is_null(kind):
            raise ValueError(f"{where}: the labels of {file}, in its column {label_column}, are {kind}; they must be "
                             "integers or words, the same in all files")


def _is_number(kind: pa.DataType) -> bool:
    """Whether labels may be stored like that: as integers, as whole floats, or as true and false."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


# -- classes ----------------------------------------------------------------------------------------------------------


def _class_names(tables: Tables, column: str, labels: Labels, where: str) -> tuple[str, ...] | None:
    """The names of numbered labels, from the metadata or else from a column of names; None if there are none."""
    if is_words(labels["train"]):
        return None
    every = [table for parts in tables.values() for _, table in parts]
    if names := _names_from_metadata(every[0].schema, column):
        return names
    values = set(np.concatenate(list(labels.values())).tolist()) - {HIDDEN}
    check_largest_label(max(values, default=0), where)
    return _names_from_column(every, column, values) or None


def _names_from_metadata(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata give the labels; empty without such metadata."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    if isinstance(names, dict):
        names = list(names.values())
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _names_from_column(tables: list[pa.Table], column: str, labels: set[int]) -> tuple[str, ...]:
    """The names in a column of names; empty if there is none that has exactly one name for each label."""
    for name_column in (f"{column}_name", *NAME_COLUMNS):
        if all(name_column in table.column_names for table in tables):
            pairs = {pair for table in tables
                     for pair in zip(table[column].to_pylist(), table[name_column].to_pylist(), strict=True)
                     if pair[0] in labels}
            if len(pairs) == len(labels):
                by_label = dict(pairs)
                return tuple(str(by_label.get(label, label)) for label in range(max(labels, default=-1) + 1))
    return ()


# -- rows -------------------------------------------------------------------------------------------------------------


def _labels(file: str, column: pa.ChunkedArray, where: str) -> np.ndarray:
    values = np.array(column.to_pylist(), object) if column.null_count or _is_text(column.type) else column.to_numpy()
    return plain_labels(values, f"{where}: labels of {file}")


def _encoded_rows(file: str, column: pa.ChunkedArray) -> list[Encoded]:
    images = []
    for chunk in column.chunks:
        for value in chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk:
            name = f"{file}, row {len(images)}"
            images.append(Encoded(name, lambda value=value: _content(value)))
    return images


def _content(value: pa.Scalar) -> pa.Buffer:
    """The bytes of an image. Raises ValueError if there are none."""
    if not value.is_valid:
        raise ValueError("it has no image bytes")
    return value.as_buffer()


SOURCE = FileSource("train*.parquet and test*.parquet", recognises, read)
