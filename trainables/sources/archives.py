"""Zip and tar archives, read as if they were folders.

An archive may come from a stranger. Nothing is ever extracted: members are read into memory, by their place in the
archive. Their names are only compared with each other, so one that leads elsewhere leads nowhere. Links and devices are
left out. What a member, and all of them, may unpack to is limited.
"""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from kdstudy.trainables.messages import one_line
from kdstudy.trainables.sources.labels import SPLIT_NAMES, first_few, split_in
from kdstudy.trainables.sources.location import FILE_SYSTEM_ERRORS, Location
from kdstudy.trainables.sources.sizes import check_memory, memory
from kdstudy.trainables.sources.store import IMAGE_SUFFIXES, LABEL_SUFFIX, File, Kind, Listing, is_hidden

COMPRESSED_TAR = {(".tar.gz", ".tgz"): gzip.open, (".tar.bz2", ".tbz2"): bz2.open, (".tar.xz", ".txz"): lzma.open}
SUFFIXES = (".zip", ".tar", *(suffix for suffixes in COMPRESSED_TAR for suffix in suffixes))
READ_SUFFIXES = (*IMAGE_SUFFIXES, ".csv", ".parquet")  # of what data sets are made
LARGEST_MEMBER = 2**28  # bytes; several are read at a time
LONGEST_NAME = 4096  # characters
CHUNK = 2**24  # bytes that are unpacked at a time
LARGEST_UNPACKED = 2**30  # bytes; more is allowed for an archive that is itself large:
MOST_UNPACKED = 200  # times its size; an image hardly shrinks, and a bomb a thousandfold
ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
                  NotImplementedError, UnicodeError, IndexError, OverflowError, *FILE_SYSTEM_ERRORS)


@dataclass(frozen=True)
class Member:
    """A file in an archive. read: returns its content, or raises what is in ARCHIVE_ERRORS; None for a link or device.
    """

    name: str
    size: int  # bytes
    read: Callable[[], bytes] | None


class ArchiveStore:
    """The files of one or several archives as one folder, `root`. changed: of the newest archive, in nanoseconds since
    1970."""

    is_local = False

    def __init__(self, root: str, members: dict[str, Member], changed: int, notes: tuple[str, ...]):
        self._root, self._members, self._changed, self._notes = root, members, changed, notes

    def kind(self, path: str) -> Kind:
        return "folder"

    def listing(self, path: str) -> Listing:
        folders = {name[:place] for name in self._members for place, char in enumerate(name) if char == "/"}
        files = [File(name, member.size, self._changed) for name, member in self._members.items()]
        return Listing(files, list(folders), self._notes)

    def read(self, path: str) -> bytes:
        try:
            return self._members[path.removeprefix(f"{self._root}/")].read()
        except ARCHIVE_ERRORS as error:
            raise OSError(one_line(error)) from None

    def view(self, path: str) -> pa.Buffer:
        return pa.py_buffer(self.read(path))


def is_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def any_in(location: Location) -> bool:
    """Whether a location is an archive, or a folder that holds one. Raises ValueError."""
    return any(is_archive(file.name) for file in location.files)


def note_beside(location: Location, splits: set[str]) -> str:
    """A note about archives beside files that are read; empty if there are none. splits: those that were read.

    Raises ValueError if an archive is called like another split.
    """
    beside = [file.name for file in location.files if is_archive(file.name)]
    if not beside:
        return ""
    named = {split_in(stem(name.rpartition("/")[2])): name for name in beside}
    if unread := next((name for split, name in named.items() if split and split not in splits), None):
        raise ValueError(f"data.source = {location.source!r}: {unread} lies beside images that are not in an archive; "
                         "unpack it, or move it elsewhere")
    one = len(beside) == 1
    return (f"{len(beside)} archive{'' if one else 's'} beside the images {'is' if one else 'are'} not read (first: "
            f"{beside[0]})")


def opened(location: Location) -> Location:
    """The content of an archive, or of all archives in a folder, see `_prefixes`.

    A folder that holds everything else in an archive is passed over. Raises ValueError.
    """
    archives = [file for file in location.files if is_archive(file.name)]
    where = f"data.source = {location.source!r}"
    if not location.is_local:
        check_memory(sum(file.size for file in archives), where, "its archives")
    parts: dict[str, dict[str, Member]] = {}
    odd, links, budget = set(), 0, memory() // 2
    for file in archives:
        members, unpacked = _members(location, file, where, budget)
        budget -= unpacked
        odd |= {name for name in members if name.startswith("/") or ".." in name.split("/") or len(name) > LONGEST_NAME}
        links += sum(member.read is None for member in members.values())
        members = {name: member for name, member in members.items()
                   if member.read is not None and name not in odd and not is_hidden(name)}
        is_split = split_in(stem(file.name)) is not None
        inside = _without_top_folder(members, keep_split=not is_split)
        if len(archives) > 1 and not is_split and not any("/" in name for name in inside):
            inside = members  # the folder may be that of a class
        parts[file.name] = inside
    prefixes = _prefixes(parts, where)
    found = _merged(parts, prefixes, where)
    merged = sorted(name for name, prefix in prefixes.items() if not prefix)
    notes = [f"{first_few(merged)} are read as one folder"] if len(merged) > 1 else []
    notes += [f"{links} of its members are links or devices, and are left out"] if links else []
    notes += [f"{len(odd)} of its members have names that lead out of it, and are left out (first: {min(odd)[:100]!r})"
              ] if odd else []
    root = f"{location.path}!"
    return Location(location.source, ArchiveStore(root, found, max(file.changed for file in archives), tuple(notes)),
                    root)


def stem(name: str) -> str:
    """An archive's name without its suffix."""
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len)
    return name[:-len(suffix)]


def _prefixes(parts: dict[str, dict[str, Member]], where: str) -> dict[str, str]:
    """The folder, with a slash, that stands for each archive: the split or, where members have no folder, the class
    that its name says, or the shard's name; "" for an archive that is alone or holds folders.

    parts: the members of each archive, by its name. Raises ValueError if only some archives of folders name a split.
    """
    if len(parts) == 1:
        return dict.fromkeys(parts, "")
    prefixes = {name: _prefix(stem(name), members) for name, members in parts.items()}
    if (folders := [name for name, prefix in prefixes.items() if not prefix]) and any(map(split_in, prefixes.values())):
        raise ValueError(f"{where}: {folders[0]} holds folders, but its name says no split, as those of other archives "
                         "do; call it train, validation or test, or move it elsewhere")
    return prefixes


def _prefix(name: str, members: dict[str, Member]) -> str:
    if any(member.lower().endswith(LABEL_SUFFIX) for member in members):  # a shard: keys may repeat in the others
        return f"{name}/"
    if split := split_in(name):
        return f"{split}/"
    images = [member for member in members if member.lower().endswith(IMAGE_SUFFIXES)] or members
    return "" if images and all("/" in member for member in images) else f"{name}/"


def _merged(parts: dict[str, dict[str, Member]], prefixes: dict[str, str], where: str) -> dict[str, Member]:
    """All members with their prefixes. Raises ValueError if two archives hold one name, except of files that nobody
    reads, such as README."""
    found, holders = {}, {}
    for archive, members in parts.items():
        for name, member in members.items():
            name = f"{prefixes[archive]}{name}"
            if name in found and not name.lower().endswith(READ_SUFFIXES):
                continue
            if name in found:
                raise ValueError(f"{where}: {holders[name]} and {archive} both hold {name}; unpack them into folders, "
                                 "or remove one")
            found[name], holders[name] = member, archive
    return found


def _without_top_folder(members: dict[str, Member], keep_split: bool) -> dict[str, Member]:
    """The same without a folder that holds everything, unless it is a split's."""
    tops = {name.partition("/")[0] for name in members}
    if len(tops) != 1 or any("/" not in name for name in members) or (keep_split and min(tops).lower() in SPLIT_NAMES):
        return members
    return {name.partition("/")[2]: member for name, member in members.items()}


def _members(location: Location, file: File, where: str, budget: int) -> tuple[dict[str, Member], int]:
    """An archive's members by name, of several with one name the last; and how much memory it takes unpacked, in bytes,
    which is at most `budget`."""
    try:
        buffer = location.view(file.name)
        kind = _zip if file.name.lower().endswith(".zip") else _tar
        plain = _unpacked(buffer, file.name, budget)
        members = {member.name: member for member in kind(plain)}
    except ARCHIVE_ERRORS as error:
        raise ValueError(f"{where}: {file.name} cannot be read as an archive, it may be incomplete: "
                         f"{one_line(error)}") from None
    total, most = sum(member.size for member in members.values()), _limit(file.size)
    largest = max(members.values(), key=lambda member: member.size, default=None)
    if total > most or (largest and largest.size > LARGEST_MEMBER):
        raise ValueError(f"{where}: {file.name} would unpack to {total / 2**30:.1f} GiB, up to "
                         f"{largest.size / 2**30:.1f} GiB for one file, from {file.size / 2**20:.1f} MiB, which images "
                         "never do; unpack it yourself, if you trust it, and name the folder")
    return members, 0 if plain is buffer else plain.size


def _limit(size: int) -> int:
    """What an archive of `size` bytes may unpack to, in bytes."""
    return max(LARGEST_UNPACKED, MOST_UNPACKED * size)


def _unpacked(buffer: pa.Buffer, name: str, budget: int) -> pa.Buffer:
    """The archive itself where all of it is compressed, as in a .tar.gz. Raises ValueError if it becomes too large."""
    for suffixes, opener in COMPRESSED_TAR.items():
        if name.lower().endswith(suffixes):
            most, content = min(_limit(buffer.size), budget), io.BytesIO()
            with opener(pa.BufferReader(buffer)) as file:
                while chunk := file.read(CHUNK):
                    if content.tell() + len(chunk) > most:
                        raise ValueError(f"it unpacks to more than the {most / 2**30:.1f} GiB that are left for it; "
                                         "unpack it yourself, if you trust it, and name the folder")
                    content.write(chunk)
            return pa.py_buffer(content.getbuffer())
    return buffer


def _zip(buffer: pa.Buffer) -> Iterator[Member]:
    archive = zipfile.ZipFile(pa.BufferReader(buffer))
    for info in archive.infolist():
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise ValueError("it is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others without limit
            raise ValueError(f"{info.filename[:100]!r} is compressed in an unusual way; zip it again")
        mode = info.external_attr >> 16
        is_plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
        yield Member(_name(info.filename), info.file_size, partial(_read_zipped, archive, info) if is_plain else None)


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        # With a size, unlike without one, no more than that is unpacked, whatever the member really holds.
        return file.read(info.file_size)


def _tar(buffer: pa.Buffer) -> Iterator[Member]:
    """Raises ValueError if it ends early: tarfile takes a header that it cannot read for the end."""
    reached, last, known = -1, None, {}
    with tarfile.open(fileobj=pa.BufferReader(buffer), mode="r:") as archive:
        for info in archive:
            if info.offset <= reached or info.size < 0:  # a header that sends the reader round in circles
                raise ValueError(f"its member {info.name} has an impossible size")
            reached = info.offset
            if info.isdir():
                continue
            last = info.name
            is_plain = info.isreg() and not info.issparse()
            size = info.size if is_plain else 0
            if info.offset_data + size > buffer.size:
                raise ValueError(f"it ends within {info.name}")
            content = buffer.slice(info.offset_data, size) if is_plain else None
            member = Member(_name(info.name), size, content.to_pybytes if is_plain else None)
            if info.islnk() and (target := known.get(_name(info.linkname))):  # the same file under another name
                member = replace(target, name=member.name)
            known[member.name] = member
            yield member
        end = buffer[archive.offset:archive.offset + tarfile.BLOCKSIZE].to_pybytes()
    if end != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"it ends early or is damaged after {last or 'its beginning'}")


def _name(name: str) -> str:
    """A member's name with slashes, without a leading ./"""
    return name.replace("\\", "/").removeprefix("./")
