"""A ZIP file from outside: names are looked at before anything is read, bytes are counted while they are.

Nothing is ever written under a name the archive chose: `copy` is handed an open file. The service opens an upload to
refuse it early, the convert job opens it again and reads it.
"""

import errno
import hashlib
import io
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from jobs import central_directory
from jobs.archive_entries import Entries
from jobs.central_directory import BadArchive
from jobs.errors import DatasetInvalid
from jobs.settings import Settings

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_RATIO = 200  # expanded to compressed bytes of one entry …
_FREE_BYTES = 1 << 20  # … once it has given more than this
_BLOCK = 1 << 18
_LONGEST_NAME = 1024  # characters
_LONGEST_PART = 255  # bytes
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # flag
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)


class Archive:
    """An opened archive whose directory has passed every check. A context manager."""

    def __init__(self, path: Path, settings: Settings, check: Callable[[], None] = lambda: None) -> None:
        """Open and check an archive; `check` is called while bytes are copied and may raise to end it.

        Raises:
            DatasetInvalid: the archive is broken, hostile or too large; the message says which.
        """
        self._limit = settings.expand_max_bytes
        self._given = 0
        self._check = check
        self._file = io.BufferedReader(_Positioned(path))
        try:
            self._zip, entries = _open(self._file, settings)
            self._entries = Entries(entry for entry in entries if not entry.is_dir())
        except BaseException:
            self._file.close()
            raise
        self._zip.filelist.clear()  # what `zipfile` keeps of each; opening an entry at hand does not need it
        self._zip.NameToInfo.clear()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def names(self) -> Iterator[str]:
        """The names of its files, in the directory's order; folders are not listed."""
        return (entry.filename for entry in self._entries)

    def sha256(self) -> str:
        """Of the archive as a whole, in hex."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def find(self, name: str) -> str | None:
        """The file of that name, whichever case its letters have."""
        found = self._entries.find(name)
        return found.filename if found else None

    def open(self, name: str) -> "Entry":
        """A file of the archive, to be read piece by piece, as often as needed. Raises DatasetInvalid."""
        entry = self._entries[name]
        with _broken_refused(name):
            return Entry(entry, self._zip.open(entry), self._check)

    def copy(self, name: str, out: BinaryIO) -> str:
        """Write a file of the archive to `out`; its SHA-256 in hex.

        Raises:
            DatasetInvalid: it is broken, or this process was given more bytes than allowed; `out` is then incomplete.
        """
        digest = hashlib.sha256()
        with self.open(name) as file:
            while block := file.read(_BLOCK):
                self._given += len(block)
                self.allow(self._given)
                digest.update(block)
                out.write(block)
        return digest.hexdigest()

    def allow(self, total: int) -> None:
        """Raises DatasetInvalid when so many bytes, by all processes together, are more than may come out of it."""
        _refuse_excess(total, self._limit)


class _Positioned(io.RawIOBase):
    """A file that keeps its position itself: the kernel's is one for all forked processes, which read it at once."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        count = os.preadv(self._fd, [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        if begin + offset < 0:
            raise OSError(errno.EINVAL, "there is nothing before the beginning")
        self._at = begin + offset
        return self._at

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class Entry:
    """A file of an archive while it is read. A context manager."""

    def __init__(self, entry: zipfile.ZipInfo, file: IO[bytes], check: Callable[[], None]) -> None:
        self._entry = entry
        self._file = file
        self._check = check
        self._given = 0

    def __enter__(self) -> "Entry":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes. Raises DatasetInvalid when the file is broken, or gives more than its size allows."""
        self._check()
        with _broken_refused(self._entry.filename):
            block = self._file.read(size)
        self._given += len(block)
        _refuse_bomb(self._entry.filename, self._given, self._entry.compress_size)
        return block


@contextmanager
def _broken_refused(name: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise refusal(f"{_shown(name)} is broken ({type(error).__name__}); export or upload it again") from None


def refusal(reason: str) -> DatasetInvalid:
    return DatasetInvalid(f"The archive is refused: {reason}.")


def _open(file: BinaryIO, settings: Settings) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    try:
        end = central_directory.read_end(file, settings.archive_max_entries)
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        central_directory.check_local_headers(file, entries, end)
        _check_entries(entries, settings.expand_max_bytes)
    except BadArchive as error:
        raise refusal(str(error)) from None
    except (*_BROKEN, ValueError) as error:
        raise refusal(f"it cannot be read ({type(error).__name__}); export or upload it again") from None
    return archive, entries


def _check_entries(entries: list[zipfile.ZipInfo], limit: int) -> None:
    """What the directory alone can tell. Raises BadArchive or DatasetInvalid."""
    total = 0
    for entry in entries:
        _check_name(entry.orig_filename)
        _check_kind(entry)
        total += entry.file_size
        _refuse_bomb(entry.orig_filename, entry.file_size, entry.compress_size)
        _refuse_excess(total, limit)
    _check_twins(entries)


def _check_name(name: str) -> None:
    parts = name.removesuffix("/").split("/")
    if (
        len(name) > _LONGEST_NAME
        or any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > _LONGEST_PART for part in parts)
        or "\\" in name
        or re.match(r"[A-Za-z]:", name)
        or any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    ):
        raise BadArchive(f"the entry name {_shown(name)} is not a plain relative path")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR) or mode & _SPECIAL_BITS:
        raise BadArchive(f"{_shown(entry.orig_filename)} is a link, a device or has special mode bits")
    if entry.flag_bits & _ENCRYPTED:
        raise BadArchive("it is encrypted; export it without a password")
    if entry.compress_type not in _METHODS:
        raise BadArchive(f"{_shown(entry.orig_filename)} is compressed in another way than deflate")


def _check_twins(entries: list[zipfile.ZipInfo]) -> None:
    """No two names may mean one path on any file system, and no file may be a folder as well."""
    seen: set[str] = set()
    files: set[str] = set()
    for entry in entries:
        key = unicodedata.normalize("NFC", entry.orig_filename.removesuffix("/")).casefold()
        if key in seen:
            raise BadArchive(f"{_shown(entry.orig_filename)} is in it twice")
        seen.add(key)
        if not entry.is_dir():
            files.add(key)
    for key in seen:
        folder = key.rpartition("/")[0]
        while folder:
            if folder in files:
                raise BadArchive(f"{_shown(folder)} is a file and a folder")
            folder = folder.rpartition("/")[0]


def _refuse_bomb(name: str, given: int, compressed: int) -> None:
    if given > _FREE_BYTES and given > MAX_RATIO * compressed:
        raise refusal(f"{_shown(name)} expands to more than {MAX_RATIO} times its size")


def _refuse_excess(total: int, limit: int) -> None:
    if total > limit:
        raise refusal(f"it expands to more than {limit / 2**30:.1f} GiB; export fewer frames at once")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}…")
