"""Whether a ZIP file says one thing only: its end record, its directory and its local headers agree.

Called by `archive` before `zipfile` reads the directory, because `zipfile` tolerates what attackers use: bytes before
the archive, several end records, overlapping entries, a directory of any size.

Source: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 to 4.3.16 (directory and end records).
"""

import struct
import zipfile
from typing import BinaryIO, NamedTuple

_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCATOR64_SIGNATURE = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_SIGNATURE = b"PK\x06\x06"
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LONGEST_COMMENT = 0xFFFF
_LARGEST_RECORD = 4096  # bytes of one directory record: name, extra fields and comment
_UTF8_NAME = 0x800  # flag: the name is UTF-8, else code page 437


class BadArchive(Exception):
    """The text completes the sentence 'The archive is refused: …'."""


class End(NamedTuple):
    """What the end record says, in entries and bytes."""

    entries: int
    directory_offset: int


def read_end(file: BinaryIO, max_entries: int) -> End:
    """The one end record of the archive. Raises BadArchive."""
    size = file.seek(0, 2)
    tail_at = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(tail_at)
    end_at = tail_at + _only_end(file.read())
    file.seek(end_at)
    _, disk, directory_disk, _, entries, length, offset, _ = _END.unpack(file.read(_END.size))
    if disk or directory_disk:
        raise BadArchive("it is one part of several; export it as a single file")
    directory_end = end_at
    wide = _read_end64(file, end_at)
    if wide:
        entries, length, offset, directory_end = wide
    if entries > max_entries:
        raise BadArchive(f"it has {entries} entries, {max_entries} are allowed; export fewer frames at once")
    if offset + length != directory_end or length > entries * _LARGEST_RECORD:
        raise BadArchive("its directory is not where its end record says; it was cut or glued together")
    return End(entries, offset)


def check_local_headers(file: BinaryIO, entries: list[zipfile.ZipInfo], end: End) -> None:
    """Every entry's own header agrees with the directory, and no two share bytes. Raises BadArchive."""
    if len(entries) != end.entries:
        raise BadArchive(f"its directory has {len(entries)} entries, its end record says {end.entries}")
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    if ordered and ordered[0].header_offset != 0:
        raise BadArchive("there are bytes before its first entry")
    limits = [entry.header_offset for entry in ordered[1:]] + [end.directory_offset]
    for entry, limit in zip(ordered, limits, strict=True):
        if _data_start(file, entry) + entry.compress_size > limit:
            raise BadArchive("two of its entries share the same bytes")


def _only_end(tail: bytes) -> int:
    """Where in the file's tail the end record begins: exactly one may fit."""
    fitting = []
    at = tail.find(_END_SIGNATURE)
    while at >= 0:
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            fitting.append(at)
        at = tail.find(_END_SIGNATURE, at + 1)
    if not fitting:
        raise BadArchive("it is no ZIP file, or its end is missing; export or upload it again")
    if len(fitting) > 1:
        raise BadArchive("it has two end records")
    return fitting[0]


def _read_end64(file: BinaryIO, end_at: int) -> tuple[int, int, int, int] | None:
    """(entries, directory bytes, directory offset, where the record begins) of a ZIP64 archive."""
    if end_at < _LOCATOR64.size:
        return None
    file.seek(end_at - _LOCATOR64.size)
    signature, _, at, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
    if signature != _LOCATOR64_SIGNATURE:
        return None
    if at + _END64.size + _LOCATOR64.size != end_at:
        raise BadArchive("its ZIP64 end record is not where it should be")
    file.seek(at)
    record = _END64.unpack(file.read(_END64.size))
    if record[0] != _END64_SIGNATURE:
        raise BadArchive("its ZIP64 end record is broken")
    return record[7], record[8], record[9], at


def _data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin, once its local header is seen to carry the same name."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != _LOCAL_SIGNATURE:
        raise BadArchive("one of its entries has no header")
    _, _, flags, _, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
    name = file.read(name_bytes).decode("utf-8" if flags & _UTF8_NAME else "cp437", "replace")
    if name != entry.orig_filename:
        raise BadArchive("an entry has one name in the directory and another in its own header")
    return entry.header_offset + _LOCAL.size + int(name_bytes) + int(extra_bytes)
