"""Parquet files in the layout of Hugging Face: a column of images, structs with their bytes, and a column of labels."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdstudy.trainables.images import Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.cache import cached
from kdstudy.trainables.sources.decoding import Encoded, decode
from kdstudy.trainables.sources.labels import SPLIT_NAMES, check_largest_label, first_few
from kdstudy.trainables.sources.location import Location

LABEL_COLUMNS = ("fine_label", "label", "labels")  # the first that is there holds the labels
NAME_COLUMNS = ("class_name", "label_name", "label_text", "class")
Tables = dict[str, list[tuple[str, pa.Table]]]  # file names and their tables, by split


def recognises(location: Location) -> bool:
    return not location.is_file and any(file.name.endswith(".parquet") for file in location.files)


def read(location: Location, settings: DataSettings) -> Raw:
    """The files' splits, by the files' names. Raises ValueError."""
    return cached(location, settings, lambda: _decode_tables(location, settings))


def _decode_tables(location: Location, settings: DataSettings) -> Raw:
    where = f"data.source = {location.source!r}"
    tables = _read_tables(location, where)
    schema = tables["train"][0][1].schema
    image_column, label_column = _image_column(schema, where), _label_column(schema, settings, where)
    _check_columns(tables, image_column, label_column, where)
    names = _class_names(tables, label_column, where)
    encoded = {}
    for split, parts in tables.items():
        images = [image for file, table in parts for image in _encoded_rows(file, table[image_column], where)]
        labels = [_labels(file, table[label_column], names, where) for file, table in parts]
        encoded[split] = (images, np.concatenate(labels))
    return Raw.from_splits(names, decode(encoded, settings))


def _read_tables(location: Location, where: str) -> Tables:
    tables: Tables = {}
    for file in location.files:
        if not file.name.endswith(".parquet") or (split := _split_of(file.name)) is None:
            continue
        try:
            table = _plain_columns(pq.read_table(io.BytesIO(location.read(file.name))))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{where}: {file.name} is not a Parquet file: {one_line(error)}") from None
        tables.setdefault(split, []).append((file.name, table))
    if "train" not in tables:
        raise ValueError(f"{where} has Parquet files, but none called train*.parquet")
    return tables


def _split_of(name: str) -> str | None:
    """The split of train-00000-of-00002.parquet, train.parquet, data/train-….parquet or default/train/0000.parquet."""
    for part in reversed(name.removesuffix(".parquet").split("/")):
        word = re.match(r"[a-z]+", part.lower())
        if word and word[0] in SPLIT_NAMES:
            return SPLIT_NAMES[word[0]]
    return None


def _plain_columns(table: pa.Table) -> pa.Table:
    """Replace categories, which pandas writes, by their values."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return table


# -- columns ----------------------------------------------------------------------------------------------------------


def _image_column(schema: pa.Schema, where: str) -> str:
    columns = [field.name for field in schema if pa.types.is_struct(field.type) and _has_bytes(field.type)]
    if len(columns) != 1:
        raise ValueError(f"{where}: needs one image column, a struct with bytes; it has "
                         f"{', '.join(columns) or 'none'} among {', '.join(schema.names)}")
    return columns[0]


def _has_bytes(kind: pa.StructType) -> bool:
    index = kind.get_field_index("bytes")
    return index >= 0 and (pa.types.is_binary(kind[index].type) or pa.types.is_large_binary(kind[index].type))


def _label_column(schema: pa.Schema, settings: DataSettings, where: str) -> str:
    columns = ", ".join(schema.names)
    if settings.label_column:
        if settings.label_column not in schema.names:
            raise ValueError(f"data.label_column = {settings.label_column!r} is not a column; the columns are "
                             f"{columns}")
        return settings.label_column
    for name in LABEL_COLUMNS:
        if name in schema.names:
            return name
    kinds = {field.name: field.type for field in schema}
    usable = ([name for name, kind in kinds.items() if pa.types.is_integer(kind)]
              or [name for name, kind in kinds.items() if _is_text(kind)])
    if not usable:
        raise ValueError(f"{where}: no column can hold labels, which are integers or words; the columns are {columns}")
    if len(usable) > 1:
        raise ValueError(f"{where}: which column holds the labels? Set data.label_column to one of "
                         f"{', '.join(usable)}")
    return usable[0]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_columns(tables: Tables, image_column: str, label_column: str, where: str) -> None:
    """Raises ValueError unless every file has both columns, with labels of one kind."""
    has_words = _is_text(tables["train"][0][1].schema.field(label_column).type)
    for file, table in (part for parts in tables.values() for part in parts):
        for column in (image_column, label_column):
            if column not in table.column_names:
                raise ValueError(f"{where}: {file} has no column {column!r}; it has {', '.join(table.column_names)}")
        kind = table.schema.field(label_column).type
        if not (_is_text(kind) if has_words else pa.types.is_integer(kind)):
            raise ValueError(f"{where}: the labels of {file}, in its column {label_column}, are {kind}; they must be "
                             "integers or words, the same in all files")


# -- classes ----------------------------------------------------------------------------------------------------------


def _class_names(tables: Tables, column: str, where: str) -> tuple[str, ...]:
    """From the labels if they are words, else from the metadata, else from a column of names, else numbers."""
    every = [table for parts in tables.values() for _, table in parts]
    if _is_text(every[0].schema.field(column).type):
        return _names_from_words(tables, column, where)
    if names := _names_from_metadata(every[0].schema, column):
        return names
    values = _values(every, column)
    check_largest_label(max(values, default=0), where)
    return _names_from_column(every, column, values) or tuple(map(str, range(max(values, default=-1) + 1)))


def _values(tables: list[pa.Table], column: str) -> set:
    return set().union(*(table[column].unique().to_pylist() for table in tables)) - {None}


def _names_from_words(tables: Tables, column: str, where: str) -> tuple[str, ...]:
    words = {split: _values([table for _, table in parts], column) for split, parts in tables.items()}
    for split, found in words.items():
        if found != words["train"]:
            raise ValueError(f"{where}: the classes of train and {split} differ: {first_few(found ^ words['train'])}")
    return tuple(sorted(words["train"]))


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
                     for pair in zip(table[column].to_pylist(), table[name_column].to_pylist(), strict=True)}
            if len(pairs) == len(labels):
                by_label = dict(pairs)
                return tuple(str(by_label.get(label, label)) for label in range(max(labels, default=-1) + 1))
    return ()


# -- rows -------------------------------------------------------------------------------------------------------------


def _labels(file: str, column: pa.ChunkedArray, names: tuple[str, ...], where: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"{where}: {file} has {column.null_count} rows without a label")
    if not _is_text(column.type):
        return column.to_numpy().astype(np.int64)
    numbers = {word: index for index, word in enumerate(names)}
    return np.array([numbers[word] for word in column.to_pylist()], np.int64)


def _encoded_rows(file: str, column: pa.ChunkedArray, where: str) -> list[Encoded]:
    images = []
    for chunk in column.chunks:
        for value in chunk.field("bytes"):
            name = f"{file}, row {len(images)}"
            if not value.is_valid:
                raise ValueError(f"{where}: {name} has no image bytes")
            images.append(Encoded(name, lambda value=value: value.as_buffer()))
    return images


SOURCE = FileSource("train*.parquet and test*.parquet", recognises, read)
