"""The entries of an archive in few bytes. `zipfile` keeps six hundred for each, and every forked process as many again,
because counting a reference writes to what is shared.

Made by `archive`, of entries it has checked.
"""

import struct
import zipfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator

_RECORD = struct.Struct("<3QL3H")  # where its header is, bytes compressed and whole, CRC, method, flags, bytes of name


class Entries:
    """Entries by name, no two of which differ only in the case of their letters. Iterated in their own order."""

    def __init__(self, entries: Iterable[zipfile.ZipInfo]) -> None:
        self._records = bytearray()
        keys, starts = array("q"), array("Q")
        for entry in entries:
            keys.append(_key(entry.filename))
            starts.append(len(self._records))
            self._records += _written(entry)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._keys = array("q", map(keys.__getitem__, order))
        self._starts = array("Q", map(starts.__getitem__, order))

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        return map(self._read, sorted(self._starts))

    def __getitem__(self, name: str) -> zipfile.ZipInfo:
        """The entry of exactly that name. Raises KeyError."""
        entry = self.find(name)
        if entry is None or entry.filename != name:
            raise KeyError(name)
        return entry

    def find(self, name: str) -> zipfile.ZipInfo | None:
        """The entry of that name, whichever case its letters have."""
        key = _key(name)
        at = bisect_left(self._keys, key)
        while at < len(self._keys) and self._keys[at] == key:
            entry = self._read(self._starts[at])
            if entry.filename.casefold() == name.casefold():
                return entry
            at += 1
        return None

    def _read(self, start: int) -> zipfile.ZipInfo:
        offset, compressed, whole, crc, method, flags, length = _RECORD.unpack_from(self._records, start)
        begin = start + _RECORD.size
        entry = zipfile.ZipInfo(self._records[begin : begin + length].decode())
        entry.header_offset, entry.compress_size, entry.file_size = offset, compressed, whole
        entry.CRC, entry.compress_type, entry.flag_bits = crc, method, flags
        return entry


def _written(entry: zipfile.ZipInfo) -> bytes:
    name = entry.filename.encode()
    sizes = (entry.header_offset, entry.compress_size, entry.file_size)
    return _RECORD.pack(*sizes, entry.CRC, entry.compress_type, entry.flag_bits, len(name)) + name


def _key(name: str) -> int:
    return hash(name.casefold())
