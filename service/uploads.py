"""An upload on its way to disk: streamed, counted, checked, then known by its name below the data root.

Called by `routes/data`. A file lies at `uploads/<random id>/<its own name>`; until it is whole and checked it is
called `.part`, and whatever ends early is removed.
"""

import asyncio
import errno
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from jobs.archive import Archive
from jobs.errors import DiskFull, InvalidInput, NotAnArchive, TooLarge
from jobs.paths import DataRoot, is_plain
from jobs.settings import Settings

_UNUSUAL = re.compile(r"[^\w. ()+,=@-]+")
_STEM_MAX_BYTES = 200  # with the endings below what file systems take
_WRITE_BYTES = 2**20  # bytes gathered before a thread writes them
_PARTS_MAX = 20
_FIELD_MAX_BYTES = 2**20  # of form fields that are not the file
_PART = ".part"
_ZIP_BEGINS = (b"PK\x03\x04", b"PK\x05\x06")  # the first entry, or the end of an empty archive


async def receive(content_type: str, chunks: AsyncIterator[bytes], root: DataRoot, settings: Settings) -> Path:
    """Store the field `file` of a multipart body; the path of the file.

    Raises:
        InvalidInput: the body is no form with a file.
        NotAnArchive, DatasetInvalid: it is no ZIP, or one that is not accepted.
        TooLarge: it is beyond a limit.
        DiskFull: there is no space left.
    """
    folder = root.uploads / secrets.token_hex(8)
    await asyncio.to_thread(folder.mkdir, parents=True)
    try:
        part = await _store(content_type, chunks, folder, settings)
        await asyncio.to_thread(_check, part, settings)
        return await asyncio.to_thread(part.rename, part.with_suffix(""))
    except OSError as error:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("No space is left below the data root: free some, then upload again.") from None
        raise
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise


def _check(part: Path, settings: Settings) -> None:
    """Refuse what could not, or must not, be expanded; nothing is."""
    with part.open("rb") as file:
        if file.read(4) not in _ZIP_BEGINS:
            raise NotAnArchive
    with Archive(part, settings):
        pass


def remove_unfinished(root: DataRoot) -> None:
    """Remove what a killed service left of uploads under way."""
    for part in root.uploads.glob(f"*/*{_PART}"):
        shutil.rmtree(part.parent, ignore_errors=True)


def clean_name(name: str) -> str:
    """The last component of a client's file name, as one that later requests can name.

    Raises:
        NotAnArchive: it does not end in .zip.
    """
    name = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = name.rpartition(".")
    if not dot or suffix.lower() != "zip":
        raise NotAnArchive("The upload's name must end in .zip: export it from the annotation tool as a ZIP archive.")
    stem = _UNUSUAL.sub("_", stem).encode()[:_STEM_MAX_BYTES].decode(errors="ignore").strip(". ")
    cleaned = f"{stem}.{suffix}"
    return cleaned if stem and is_plain(cleaned) else "upload.zip"


async def _store(content_type: str, chunks: AsyncIterator[bytes], folder: Path, settings: Settings) -> Path:
    form = _Form(folder, settings.upload_max_bytes)
    try:
        with PushMultipartParser(_boundary(content_type), max_segment_count=_PARTS_MAX, strict=True) as parser:
            async for chunk in chunks:
                for piece in parser.parse(chunk):
                    form.take(piece)
                await form.write(at_least=_WRITE_BYTES)
        await form.write()
        return form.file_path()
    except ParserLimitReached:
        raise TooLarge("The form has too many parts or headers.") from None
    except MultipartError as error:
        raise InvalidInput(f"The form is damaged: {error}", path="file") from None
    finally:
        form.close()


def _boundary(content_type: str) -> str:
    media, options = parse_options_header(content_type)
    if media != "multipart/form-data" or not options.get("boundary"):
        raise InvalidInput("Send the archive as the field `file` of a multipart/form-data body.", path="file")
    return str(options["boundary"])


class _Form:
    """The parts of a multipart body; only the field `file` is kept."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._in_file = False
        self._bytes = 0
        self._other_bytes = 0
        self._unwritten = bytearray()

    def take(self, piece: Any) -> None:
        """A head, some content or the end (None) of a part."""
        if isinstance(piece, MultipartSegment):
            self._begin(piece)
        elif piece and self._in_file:
            self._bytes += len(piece)
            self._unwritten += piece
            if self._bytes > self._max_bytes:
                raise TooLarge(f"The upload is larger than {self._max_bytes / 2**20:,.0f} MB.")
        elif piece:
            self._other_bytes += len(piece)
            if self._other_bytes > _FIELD_MAX_BYTES:
                raise TooLarge("The form's other fields are too large.")

    def _begin(self, part: MultipartSegment) -> None:
        self._in_file = part.name == "file" and bool(part.filename)
        if not self._in_file:
            return
        if self._path is not None:
            raise InvalidInput("Send one file at a time.", path="file")
        self._path = self._folder / (clean_name(part.filename) + _PART)

    async def write(self, at_least: int = 1) -> None:
        """Bring what has gathered to the disk, in a thread."""
        if self._path is None or len(self._unwritten) < at_least:
            return
        if self._file is None:
            self._file = await asyncio.to_thread(self._path.open, "xb")
        gathered, self._unwritten = self._unwritten, bytearray()
        await asyncio.to_thread(self._file.write, gathered)

    def file_path(self) -> Path:
        """Where the file lies, once everything is written."""
        if self._path is None:
            raise InvalidInput("is required: send the archive as the field `file` of the form.", path="file")
        if self._file is None:
            raise NotAnArchive("The upload is empty.")
        return self._path

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
