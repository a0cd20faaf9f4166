"""Exports on their way out: their answers, and their archives as byte ranges.

Called by `routes/exports`. Source of the ranges: RFC 9110, section 14.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from litestar.exceptions import HTTPException
from litestar.response import Stream

from jobs.specs import ExportFormat
from service.answers import Answer
from service.links import Link
from service.records import ExportRecord

_BLOCK_BYTES = 2**18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class ExportRow(Answer, frozen=True, kw_only=True):
    """One finished export; `job_id` is the training it was made from."""

    export_id: str
    job_id: str
    export_format: ExportFormat
    file_size_mb: float
    created_at: datetime
    download_url: str


class ExportList(Answer, frozen=True, kw_only=True):
    exports: tuple[ExportRow, ...]
    total: int


class DownloadInfo(Answer, frozen=True, kw_only=True):
    """Where an export is had; `expires_at` is null for a link without an end."""

    download_url: str
    filename: str
    file_size_mb: float
    expires_at: datetime | None


def row(record: ExportRecord, link: Link) -> ExportRow:
    return ExportRow(
        export_id=record.export_id,
        job_id=record.job_id,
        export_format=record.export_format,
        file_size_mb=record.file_size_mb,
        created_at=record.created_at,
        download_url=link.url,
    )


def info(record: ExportRecord, link: Link) -> DownloadInfo:
    return DownloadInfo(
        download_url=link.url,
        filename=Path(record.archive_path).name,
        file_size_mb=record.file_size_mb,
        expires_at=link.expires_at,
    )


def answer_file(path: Path, etag: str, range_header: str | None, if_range: str | None) -> Stream:
    """A file, or the one range of it that was asked for.

    Raises:
        HTTPException: 416, for several ranges at once or one that is not there.
    """
    size = path.stat().st_size
    headers = {
        "etag": f'"{etag}"',
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": f'attachment; filename="{path.name}"',
    }
    wanted = _range(range_header, size) if if_range in (None, headers["etag"]) else None
    if wanted is not None:
        headers["content-range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    part = range(size) if wanted is None else wanted
    headers["content-length"] = str(len(part))
    status = 200 if wanted is None else 206
    return Stream(blocks(lambda: _open(path), part), status_code=status, media_type="application/zip", headers=headers)


def _range(header: str | None, size: int) -> range | None:
    """The bytes a Range header asks for; None without one."""
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    wanted = range(0)
    if match and match[1]:
        wanted = range(int(match[1]), min(size, int(match[2]) + 1) if match[2] else size)
    elif match and match[2]:
        wanted = range(max(0, size - int(match[2])), size)
    if not wanted:
        message = f"The file has {size} bytes: ask for one range of them."
        raise HTTPException(message, status_code=416, headers={"content-range": f"bytes */{size}"})
    return wanted


async def blocks(open_file: Callable[[], BinaryIO], part: range) -> AsyncIterator[bytes]:
    """Bytes of a file, as its client takes them; it is opened when the first are wanted, and closed."""
    file = await asyncio.to_thread(open_file)
    try:
        await asyncio.to_thread(file.seek, part.start)
        left = len(part)
        while left > 0 and (block := await asyncio.to_thread(file.read, min(left, _BLOCK_BYTES))):
            left -= len(block)
            yield block
    finally:
        file.close()


def _open(path: Path) -> BinaryIO:
    """Not through a link that somebody put in the archive's place."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
