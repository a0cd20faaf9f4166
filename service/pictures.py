"""A dataset's pictures on their way to the page. What a file is, its first bytes say, never its name.

Called by `routes/datasets`. The answer runs nothing even where a browser opens it as a page: its type is one of three,
never guessed, and its policy allows nothing. Source of If-None-Match: RFC 9110, section 13.1.2.
"""

import os
import re
from http import HTTPStatus
from typing import Any

from litestar import Response
from litestar.response import Stream

from jobs.errors import InvalidInput
from jobs.paths import DataRoot
from jobs.values import MAX_PICTURE_BYTES
from service import downloads

_FRESH_S = 300  # a dataset may be made again under its name
_KINDS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)
_HEAD_BYTES = 16


def answer(root: DataRoot, path: str, part: range | None, if_none_match: str | None) -> Response[Any]:
    """The picture, or 304 to whoever has it; `part` are its bytes inside a dataset's table.

    Raises:
        PathNotAllowed, FileMissing: as `DataRoot.open`.
        InvalidInput: no picture, or too large a one.
    """
    if part is not None and not _is_table(root.confine(path)):
        raise InvalidInput("offset and bytes are for pictures inside an .arrow file of a dataset", path="path")
    with root.open(path) as file:
        found = os.fstat(file.fileno())
        place = range(found.st_size) if part is None else part
        if place.stop > found.st_size:
            raise InvalidInput(f"the file ends at byte {found.st_size:,}", path="offset")
        file.seek(place.start)
        head = file.read(min(_HEAD_BYTES, len(place)))
        media_type = next((kind for start, kind in _KINDS if start.match(head)), None)
        if media_type is None:
            raise InvalidInput("is no PNG, JPEG or WebP picture", path="path")
        if len(place) > MAX_PICTURE_BYTES:
            raise InvalidInput(f"is larger than {MAX_PICTURE_BYTES:,} bytes", path="path")
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{place.start:x}-{place.stop:x}"'
        headers = {
            "content-type": media_type,  # as a header: the route's own type would win over a stream's
            "etag": etag,
            "cache-control": f"private, max-age={_FRESH_S}",
            "content-length": str(len(place)),
            "content-disposition": "attachment",
            "content-security-policy": "sandbox; default-src 'none'",
        }
        if _has(if_none_match, etag):
            return Response(b"", status_code=HTTPStatus.NOT_MODIFIED, headers=headers | {"content-length": "0"})
    return Stream(downloads.blocks(lambda: root.open(path), place), headers=headers)


def _is_table(name: str) -> bool:
    return name.startswith("datasets/") and name.endswith(".arrow")


def _has(if_none_match: str | None, etag: str) -> bool:
    known = (each.strip().removeprefix("W/") for each in (if_none_match or "").split(","))
    return any(each in (etag, "*") for each in known)
