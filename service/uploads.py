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
from typing import Any, BinaryIO, NamedTuple

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


class Upload(NamedTuple):
    """Where the file lies, and what the form says beside it."""

    path: Path
    text: bytes


async def receive(
    content_type: str, chunks: AsyncIterator[bytes], root: DataRoot, settings: Settings, field: str | None = None
) -> Upload:
    """Store the field `file` of a multipart body; `field` names one whose text is kept, which may be left out.

    Raises:
        InvalidInput: the body is no form with a file.
        NotAnArchive, DatasetInvalid: it is no ZIP, or one that is not accepted.
        TooLarge: it is beyond a limit.
        DiskFull: there is no space left.
    """
    folder = root.uploads / secrets.token_hex(8)
    await asyncio.to_thread(folder.mkdir, parents=True)
    try:
        part, text = await _store(content_type, chunks, _Form(folder, settings.upload_max_bytes, field))
        await asyncio.to_thread(_check, part, settings)
        return Upload(await asyncio.to_thread(part.rename, part.with_suffix("")), text)
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


async def _store(content_type: str, chunks: AsyncIterator[bytes], form: "_Form") -> Upload:
    try:
        with PushMultipartParser(_boundary(content_type), max_segment_count=_PARTS_MAX, strict=True) as parser:
            async for chunk in chunks:
                for piece in parser.parse(chunk):
                    form.take(piece)
                await form.write(at_least=_WRITE_BYTES)
        await form.write()
        return Upload(form.file_path(), bytes(form.text))
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
    """The parts of a multipart body; only the field `file` and the text of one other are kept."""

    def __init__(self, folder: Path, max_bytes: int, text_field: str | None) -> None:
        self.text = bytearray()
        self._folder = folder
        self._max_bytes = max_bytes
        self._text_field = text_field
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._into: bytearray | None = None  # where content of the part that is under way goes
        self._bytes = 0
        self._other_bytes = 0
        self._unwritten = bytearray()
        self._has_text = False

    def take(self, piece: Any) -> None:
        """A head, some content or the end (None) of a part."""
        if isinstance(piece, MultipartSegment):
            self._begin(piece)
        elif piece:
            self._count(len(piece))
            if self._into is not None:
                self._into += piece

    def _count(self, size: int) -> None:
        if self._into is self._unwritten:
            self._bytes += size
            if self._bytes > self._max_bytes:
                raise TooLarge(f"The upload is larger than {self._max_bytes / 2**20:,.0f} MB.")
        else:
            self._other_bytes += size
            if self._other_bytes > _FIELD_MAX_BYTES:
                raise TooLarge("The form's other fields are too large.")

    def _begin(self, part: MultipartSegment) -> None:
        self._into = None
        if part.name == "file" and part.filename:
            if self._path is not None:
                raise InvalidInput("Send one file at a time.", path="file")
            self._path = self._folder / (clean_name(part.filename) + _PART)
            self._into = self._unwritten
        elif part.name == self._text_field:
            if self._has_text:
                raise InvalidInput("Send it once.", path=part.name)
            self._has_text = True
            self._into = self.text

    async def write(self, at_least: int = 1) -> None:
        """Bring what has gathered to the disk, in a thread."""
        if self._path is None or len(self._unwritten) < at_least:
            return
        if self._file is None:
            self._file = await asyncio.to_thread(self._path.open, "xb")
        gathered = bytes(self._unwritten)
        self._unwritten.clear()
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
