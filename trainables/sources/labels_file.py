"""Image files whose labels a CSV file lists: metadata.csv, as in Hugging Face's image folders, or `data.labels`."""

import csv
import io
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property, partial

from kdstudy.trainables.images import Raw
from kdstudy.trainables.messages import one_line
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources.assembly import assembled
from kdstudy.trainables.sources.base import FileSource
from kdstudy.trainables.sources.decoding import Encoded
from kdstudy.trainables.sources.labels import (
    SPLIT_NAMES,
    check_column,
    first_few,
    from_text,
    is_metadata,
    split_in,
)
from kdstudy.trainables.sources.location import Location
from kdstudy.trainables.sources.store import File

DELIMITERS = (",", ";", "\t", "|")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")  # the first that is there
IMAGE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "image_id", "id")  # likewise
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold")
SAMPLE = 200  # rows, to see which column names files


def recognises(location: Location, settings: DataSettings) -> bool:
    """metadata.csv is only read where there are no class folders: it may hold anything else about the images."""
    if location.is_file or not any(file.is_image for file in location.files):
        return False
    return settings.labels is not None or (bool(_metadata(location)) and not _has_class_folders(location))


def read(location: Location, settings: DataSettings) -> Raw:
    """The images that the CSV files list, in their order. Raises ValueError."""
    where, index = f"data.source = {location.source!r}", _Index(location)
    tables = [_read_table(location, name, index, where) for name in _csv_names(location, settings)]
    says_train = _says_train([table.folder for table in tables])
    tables.sort(key=lambda table: _split_of(table.folder, says_train) != "train")
    label = _label_column(tables[0], index, settings)
    listed_rows, split_notes = zip(*(_rows(table, label, index, settings) for table in tables), strict=True)
    rows, notes = _without_repeats([row for rows in listed_rows for row in rows])
    notes += filter(None, split_notes)
    if unlisted := index.count - sum(row.is_there for row in rows):
        notes.append(f"{unlisted} image file{'s' if unlisted > 1 else ''} that no row lists {_are(unlisted)} left out")
    splits = _split(rows)
    if "train" not in splits:
        raise ValueError(f"{where}: the labels are of {' and '.join(splits) or 'no images'} alone; list images to "
                         "train on")
    labels = from_text({split: [row.label for row in found] for split, found in splits.items()}, where)
    listed = {split: ([Encoded(row.file, partial(_content, location, row)) for row in found], labels[split])
              for split, found in splits.items()}
    return assembled(listed, settings, notes=[*location.notes, *notes])


def _content(location: Location, row: "_Row") -> bytes:
    if not row.is_there:
        raise ValueError(f"{row.place} names it, but there is no such file")
    return location.read(row.file)


# -- which files ------------------------------------------------------------------------------------------------------


def _metadata(location: Location) -> list[str]:
    return [file.name for file in location.files if is_metadata(file.name)]


def _has_class_folders(location: Location) -> bool:
    """Whether the images lie as `image_folder` reads them: in at least two folders, or two in the training folder."""
    names = [file.name.split("/") for file in location.files if file.is_image]
    if any(parts[0].lower() in SPLIT_NAMES and SPLIT_NAMES[parts[0].lower()] == "train" for parts in names):
        names = [parts[1:] for parts in names if SPLIT_NAMES.get(parts[0].lower()) == "train"]
    return all(len(parts) > 1 for parts in names) and len({parts[0] for parts in names}) > 1


def _csv_names(location: Location, settings: DataSettings) -> list[str]:
    if settings.labels is None:
        return _metadata(location)
    known = [file.name for file in location.files]
    if settings.labels in known:
        return [settings.labels]
    there = [name for name in known if name.lower().endswith((".csv", ".tsv", ".txt"))]
    raise ValueError(f"data.labels = {settings.labels!r} is not a file in data.source = {location.source!r}; it holds "
                     f"{first_few(there) or 'no CSV file'}. Name it as it is called there, or name a folder in "
                     "data.source that holds both the file and the images")


class _Match(IntEnum):
    """How a cell of a CSV file names an image file, the surest way first."""

    PATH = 0
    NAME = 1  # without its folder
    STEM = 2  # without a suffix


class _Index:
    """Finds the image file that a cell of a CSV file means."""

    def __init__(self, location: Location):
        self._files = [file for file in location.files if file.is_image]
        self.count = len(self._files)

    @cached_property
    def _by_path(self) -> dict[str, File]:
        return {file.name: file for file in self._files}

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """The files by name without their folder, and by both with and without a suffix."""
        found = defaultdict(set)
        for file in self._files:
            base = file.name.rpartition("/")[2]
            for key in (base, _stem(base), _stem(file.name)):
                found[key].add(file.name)
        return {key: sorted(names) for key, names in found.items()}

    @cached_property
    def _folders_of_splits(self) -> set[str]:
        """The folders with images that name a split, each with a slash."""
        folders = {file.name[:place + 1] for file in self._files for place, char in enumerate(file.name) if char == "/"}
        return {folder for folder in folders if split_in(folder)}

    def by_path(self, cell: str, folder: str) -> list[str]:
        """The files that a cell names with their folder, with or without a suffix. folder: see `find`."""
        paths = (f"{folder}{_plain(cell)}", _plain(cell))
        return next(([path] for path in paths if path in self._by_path), None) or next(
            (self._by_end[path] for path in paths if "/" in path and path in self._by_end), [])

    def find(self, cell: str, folder: str, anywhere: bool = True) -> list[str]:
        """The files that a cell may mean.

        folder: of the CSV file, with a slash; "" for the location itself. anywhere: whether a file that is not in the
        folder that the cell names may be meant, as where all paths are those of another machine.
        """
        if (found := self.by_path(cell, folder)) or ("/" in _plain(cell) and not anywhere):
            return found
        found = self._by_end.get(_plain(cell).rpartition("/")[2], [])
        inside = [name for name in found if name.startswith(folder)]
        return inside if inside or folder in self._folders_of_splits else found

    def match(self, cell: str, folder: str) -> _Match | None:
        """How a cell names a file; None if it names none."""
        if not (found := self.find(cell, folder)):
            return None
        if _plain(cell).rpartition("/")[2] not in [name.rpartition("/")[2] for name in found]:
            return _Match.STEM
        return _Match.PATH if self.by_path(cell, folder) else _Match.NAME


def _plain(cell: str) -> str:
    return cell.strip().replace("\\", "/").removeprefix("./")


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """What a CSV file says of an image. place: for messages; split: as written there, None without such a column."""

    place: str
    file: str
    is_there: bool
    label: str
    split: str | None


@dataclass(frozen=True)
class _Table:
    """A CSV file. where: begins messages; header: the names of the columns, or their numbers from 1 if it has none;
    lines: where each row begins in the file, counted from 1."""

    where: str
    name: str
    header: list[str]
    cells: list[list[str]]
    lines: list[int]

    @property
    def folder(self) -> str:
        """Its folder with a slash; "" for the location itself."""
        return self.name[:self.name.rfind("/") + 1]


def _read_table(location: Location, name: str, index: _Index, where: str) -> _Table:
    where = f"{where}: {name}"
    try:
        text = location.read(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8; save it as CSV with that encoding") from None
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {one_line(error)}") from None
    delimiter = max(DELIMITERS, key=text[:text.find("\n") + 1 or None].count)
    try:
        rows, lines = _numbered_rows(text, delimiter)
    except csv.Error as error:
        raise ValueError(f"{where} is not a CSV file: {one_line(error)}") from None
    if not rows:
        raise ValueError(f"{where} is empty")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ValueError(f"{where} is no table: its first row has {len(rows[0])} columns, line {line} {len(row)}")
    table = _Table(where, name, [name.strip() for name in rows[0]], rows[1:], lines[1:])
    if any(index.find(cell, table.folder) for cell in rows[0]):
        header = [str(number) for number in range(1, len(rows[0]) + 1)]
        return replace(table, header=header, cells=rows, lines=lines)
    return table


def _numbered_rows(text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """The rows that are not empty, and the line at which each begins. Raises csv.Error."""
    reader, rows, lines, begin = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [], [], 1
    for row in reader:
        if any(row):
            rows.append(row)
            lines.append(begin)
        begin = reader.line_num + 1
    return rows, lines


def _rows(table: _Table, label: str, index: _Index, settings: DataSettings) -> tuple[list[_Row], str]:
    """A table's rows, with empty labels where it has no such column, and a note, which may be empty. Raises ValueError.
    """
    file_column = _file_column(table, index, settings)
    label_column = table.header.index(label) if label in table.header else None
    split_column, note = _split_column(table, (file_column, label_column))
    is_foreign = not any(index.by_path(row[file_column], table.folder) for row in table.cells)
    rows = []
    for line, row in zip(table.lines, table.cells, strict=True):
        cell = row[file_column].strip()
        found = index.find(cell, table.folder, anywhere=is_foreign)
        if len(found) > 1:
            raise ValueError(f"{table.where}: {cell!r} in line {line} may be any of {first_few(found)}; write its path")
        rows.append(_Row(f"line {line} of {table.name}", found[0] if found else f"{table.folder}{cell}", bool(found),
                         "" if label_column is None else row[label_column].strip(),
                         None if split_column is None else row[split_column].strip().lower()))
    return rows, note


def _file_column(table: _Table, index: _Index, settings: DataSettings) -> int:
    """The column that names files. Raises ValueError if none does, or several do equally well."""
    if settings.image_column:
        return _named(table.header, settings.image_column, "image_column")
    sample = table.cells[:: max(1, len(table.cells) // SAMPLE)]
    matches = [Counter(match for row in sample if (match := index.match(row[column], table.folder)) is not None)
               for column in range(len(table.header))]
    most = max(found.total() for found in matches)
    if not most:
        raise ValueError(f"{table.where}: no column names image files of the data; the columns are "
                         f"{', '.join(table.header)}"
                         + (f", and the first row is {', '.join(table.cells[0])}" if table.cells else ""))
    # An index column may match all of 0.png, 1.png, …, while the column of files names one that is missing.
    usual = {column: found.most_common(1)[0][0] for column, found in enumerate(matches)
             if 2 * found.total() >= most}
    surest = [column for column, match in usual.items() if match == min(usual.values())]
    others = (*LABEL_COLUMNS, (settings.label_column or "").lower())
    surest = [column for column in surest if table.header[column].lower() not in others] or surest
    names = [table.header[column].lower() for column in surest]
    if len(surest) > 1 and not set(names) & set(IMAGE_COLUMNS):
        raise ValueError(f"{table.where}: several columns name image files; set data.image_column to one of "
                         f"{', '.join(table.header[column] for column in surest)}")
    return next((surest[names.index(name)] for name in IMAGE_COLUMNS if name in names), surest[0])


def _label_column(table: _Table, index: _Index, settings: DataSettings) -> str:
    """The name of the column of labels. Raises ValueError if it is not clear which one is meant."""
    header, file_column = table.header, _file_column(table, index, settings)
    if settings.label_column:
        return header[_named(header, settings.label_column, "label_column")]
    others = [name for column, name in enumerate(header) if column != file_column and name]  # pandas' index has none
    for wanted in LABEL_COLUMNS:
        if found := [name for name in others if name.lower() == wanted]:
            return found[0]
    others = [name for name in others if name.lower() not in SPLIT_COLUMNS] or others
    if not others:
        raise ValueError(f"{table.where} has no column beside that of the files; it needs one of labels")
    if len(others) > 1:
        raise ValueError(f"{table.where}: which column holds the labels? Set data.label_column to one of "
                         f"{', '.join(others)}")
    return others[0]


def _named(header: list[str], name: str, setting: str) -> int:
    check_column(header, name, setting)
    return header.index(name)


def _split_column(table: _Table, taken: tuple[int | None, ...]) -> tuple[int | None, str]:
    """The column that says which split a row belongs to, if there is one, and a note, which may be empty.

    Raises ValueError if only some of its values are names of splits.
    """
    note = ""
    for column, name in enumerate(table.header):
        if name.lower() not in SPLIT_COLUMNS or column in taken:
            continue
        words = {row[column].strip().lower() for row in table.cells}
        unknown = words - set(SPLIT_NAMES)
        if not unknown:
            return column, ""
        if len(unknown) < len(words):
            raise ValueError(f"{table.where}: its column {name} holds {first_few(unknown)} beside names of splits; "
                             "write train, validation or test in every row, or give the column another name")
        note = note or (f"the column {name} of {table.name} is not read, because it does not say train, validation or "
                        f"test, but {first_few(unknown)}")
    return None, note


def _says_train(folders: list[str]) -> bool:
    """Whether a folder has a word for training in its name; if none has, one such as "test tube" is no split."""
    return any(split_in(folder) == "train" for folder in folders)


def _split_of(folder: str, says_train: bool) -> str:
    """The split that a folder's path names; else the training split. says_train: see `_says_train`."""
    named = next((SPLIT_NAMES[part] for part in folder.lower().split("/") if part in SPLIT_NAMES), None)
    return named or (split_in(folder) if says_train else None) or "train"


def _without_repeats(rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """The rows with each file once, and a note if some were there more often. Raises ValueError if they disagree."""
    known: dict[str, _Row] = {}
    for row in rows:
        first = known.setdefault(row.file, row)
        if (first.label, first.split) != (row.label, row.split):
            raise ValueError(f"data.labels: {row.file} has the label {first.label!r} in {first.place}, but "
                             f"{row.label!r} in {row.place}; an image has one label and one split")
    repeated = len(rows) - len(known)
    return list(known.values()), [f"{repeated} row{'s' if repeated > 1 else ''} of the labels repeat"
                                  f"{'' if repeated > 1 else 's'} an earlier one"] if repeated else []


def _split(rows: list[_Row]) -> dict[str, list[_Row]]:
    """The rows by split: that of their column, else of the folder of their file, else all for training."""
    folders, found = [row.file.rpartition("/")[0] for row in rows], defaultdict(list)
    says_train = _says_train(folders)
    for row, folder in zip(rows, folders, strict=True):
        found[SPLIT_NAMES[row.split] if row.split else _split_of(folder, says_train)].append(row)
    return found


def _are(count: int) -> str:
    return "are" if count > 1 else "is"


SOURCE = FileSource("image files with their labels in metadata.csv or data.labels", recognises, read)
