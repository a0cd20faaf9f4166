"""Cheap checks of an uploaded ZIP: its directory is read, nothing is expanded. Called by `uploads` in a thread.

What only the bytes can tell (real sizes, checksums, images) the convert job checks while it reads.
Source of the record layouts: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.4.
"""

import stat
import struct
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from jobs.errors import DatasetInvalid, NotAnArchive, TooLarge
from jobs.settings import Settings

RATIO_LIMIT = 200  # expanded : stored, for entries that expand to more than
RATIO_FROM_BYTES = 2**20
NAME_MAX_BYTES = 255  # of one component

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_PLACE = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_DIRECTORY_ENTRY_BYTES = 46  # the smallest entry of the central directory
_DIRECTORY_MAX_BYTES = 64 * 2**20
_ENCRYPTED = 0x1
_UTF8_NAME = 0x800


def check(path: Path, settings: Settings) -> None:
    """Refuse an upload that could not, or must not, be expanded.

    Raises:
        NotAnArchive: the content is no ZIP.
        TooLarge: it would expand beyond the limits.
        DatasetInvalid: its structure is broken, or an entry would leave its folder or is no plain file.
    """
    with path.open("rb") as file:
        _check_end(file, path.stat().st_size, settings.archive_max_entries)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                _check_entries(entries, settings)
                _check_layout(file, entries, archive.start_dir)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise DatasetInvalid(f"The ZIP file is damaged ({error}): export it again.") from None


def _check_end(file: BinaryIO, size: int, max_entries: int) -> None:
    """The record at the end, before a library reads a directory as large as that record claims."""
    begins_well = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 and not begins_well:
        raise NotAnArchive
    if at < 0 or len(tail) - at < _END.size:
        raise DatasetInvalid("The ZIP file has no end: the upload or the export was cut off.")
    _, _, _, _, entries, directory_bytes, offset, comment_bytes = _END.unpack_from(tail, at)
    if at + _END.size + comment_bytes != len(tail) or not begins_well:
        raise DatasetInvalid("The ZIP file has foreign bytes before its begin or after its end.")
    if entries == 0xFFFF or 0xFFFFFFFF in (directory_bytes, offset):
        entries, directory_bytes = _zip64(file, size, tail, at)
    if entries > max_entries or directory_bytes > _DIRECTORY_MAX_BYTES:
        raise TooLarge(f"The archive has more than {max_entries:,} entries.")
    if entries * _DIRECTORY_ENTRY_BYTES > directory_bytes:
        raise DatasetInvalid("The ZIP file's directory is shorter than it says.")


def _zip64(file: BinaryIO, size: int, tail: bytes, at: int) -> tuple[int, int]:
    """Entries and bytes of the directory, from the record for large archives."""
    damaged = DatasetInvalid("The ZIP file's directory is damaged.")
    if at < _END64_PLACE.size:
        raise damaged
    signature, _, place, _ = _END64_PLACE.unpack_from(tail, at - _END64_PLACE.size)
    if signature != b"PK\x06\x07" or place + _END64.size > size:
        raise damaged
    file.seek(place)
    signature, *_, entries, directory_bytes, _ = _END64.unpack(file.read(_END64.size))
    if signature != b"PK\x06\x06":
        raise damaged
    return entries, directory_bytes


def _check_entries(entries: Sequence[zipfile.ZipInfo], settings: Settings) -> None:
    if len(entries) > settings.archive_max_entries:
        raise TooLarge(f"The archive has more than {settings.archive_max_entries:,} entries.")
    if sum(entry.file_size for entry in entries) > settings.expand_max_bytes:
        raise TooLarge(f"The archive would expand to more than {settings.expand_max_bytes / 2**30:.1f} GiB.")
    names: dict[str, bool] = {}
    for entry in entries:
        _check_name(entry.orig_filename)
        _check_kind(entry)
        _check_ratio(entry)
        name = unicodedata.normalize("NFC", entry.filename.rstrip("/")).casefold()
        if name in names:
            raise _bad(entry, "stands twice in the archive, or differs from another only in case or accents")
        names[name] = entry.is_dir()
    _check_parents(names)


def _check_name(name: str) -> None:
    parts = name.rstrip("/").split("/")
    leaves = name.startswith("/") or "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts)
    too_long = any(len(part.encode("utf-8", "replace")) > NAME_MAX_BYTES for part in parts)
    if leaves or too_long or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise DatasetInvalid(f"The archive has an entry with a name that is not allowed: {name[:80]!r}.")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16 if entry.create_system == 3 else 0  # 3 = Unix
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR) or mode & (stat.S_ISUID | stat.S_ISGID):
        raise _bad(entry, "is a link, a device or has special rights")
    if entry.flag_bits & _ENCRYPTED:
        raise _bad(entry, "is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _bad(entry, "is packed by a method other than deflate")


def _check_ratio(entry: zipfile.ZipInfo) -> None:
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > RATIO_LIMIT * max(1, entry.compress_size):
        raise _bad(entry, f"expands to more than {RATIO_LIMIT} times its size")


def _check_parents(names: dict[str, bool]) -> None:
    """No file is also another entry's folder."""
    for name in names:
        for end in (index for index, character in enumerate(name) if character == "/"):
            if names.get(name[:end]) is False:
                raise DatasetInvalid(f"The archive has {name[:end][:80]!r} as a file and as a folder.")


def _check_layout(file: BinaryIO, entries: Sequence[zipfile.ZipInfo], directory_at: int) -> None:
    """Entries do not overlap, and each is called the same in front of its data as in the directory."""
    behind = 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        file.seek(entry.header_offset)
        header = file.read(_LOCAL.size)
        *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
        name = file.read(name_bytes).decode("utf-8" if entry.flag_bits & _UTF8_NAME else "cp437")
        if header[:4] != b"PK\x03\x04" or name != entry.orig_filename:
            raise _bad(entry, "has another name in front of its data")
        if entry.header_offset < behind:
            raise _bad(entry, "overlaps another entry")
        behind = entry.header_offset + _LOCAL.size + name_bytes + extra_bytes + entry.compress_size
    if behind > directory_at:
        raise DatasetInvalid("The ZIP file's entries reach into its directory.")


def _bad(entry: zipfile.ZipInfo, what: str) -> DatasetInvalid:
    return DatasetInvalid(f"The archive's entry {entry.filename[:80]!r} {what}.")
