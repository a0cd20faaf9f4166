"""Limits on request bodies, before any route sees one: media type, size, time, nesting, repeated keys.

Called by `access`. State-changing JSON is taken only as `application/json`: a foreign page can send a form or
`text/plain` without asking first, but not that.
"""

import asyncio
import itertools
import json
import re
from http import HTTPStatus
from typing import Any

from litestar.types import Receive

from service.refusal import Refusal

JSON_MAX_BYTES = 2**20
JSON_MAX_DEPTH = 32
BODY_WITHIN_S = 30.0

UPLOAD_PATHS = tuple(f"{prefix}/data/{name}" for prefix in ("/api", "/api/training") for name in ("upload", "prepare"))
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # never goes back: linear
_STEPS = bytes.maketrans(b"[{]}", b"\2\2\0\0")  # one more than what a bracket adds to the depth
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


async def checked(path: str, headers: dict[bytes, str], receive: Receive) -> Receive:
    """A `receive` that gives a body within its limits; an upload's body streams on untouched.

    Raises:
        Refusal: it is none, or beyond a limit.
    """
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", "Send the body uncompressed.")
    media, charset = _media_type(headers.get(b"content-type", ""))
    if media == "multipart/form-data" and path.rstrip("/") in UPLOAD_PATHS:
        return receive
    if headers.get(b"content-length", "0") == "0" and b"transfer-encoding" not in headers:
        return receive
    if media != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Send JSON as application/json in UTF-8."
        )
    if int(headers.get(b"content-length", "0")) > JSON_MAX_BYTES:
        raise _too_large()
    return await _buffered(receive)


def check_json(raw: bytes) -> None:
    """Refuse what parsers disagree on. Text that is no JSON at all passes: its route says where it breaks.

    Raises:
        Refusal: not UTF-8, nested too deeply, a key given twice, or NUL in text.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _invalid("The body is not UTF-8 text.") from None
    if raw.count(b"[") + raw.count(b"{") > JSON_MAX_DEPTH < _depth(raw):  # few brackets need no closer look
        raise Refusal(HTTPStatus.BAD_REQUEST, "too_deep", f"JSON may be nested {JSON_MAX_DEPTH} levels deep.")
    if _NUL.search(raw):
        raise _invalid("Text may not contain NUL characters.")
    try:
        json.loads(text, object_pairs_hook=_each_key_once)
    except ValueError:
        return


def _depth(raw: bytes) -> int:
    """How deep the brackets outside of text are nested."""
    steps = _TEXT.sub(b"", raw).translate(_STEPS, _NO_BRACKETS)
    return max(itertools.accumulate(step - 1 for step in steps), default=0)


async def _buffered(receive: Receive) -> Receive:
    """The whole JSON body, then whatever comes after it (a disconnect)."""
    body = bytearray()
    gone: Any = None
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            while gone is None:
                message = await receive()
                if message["type"] == "http.disconnect":
                    gone = message
                elif message["type"] == "http.request":
                    body += message["body"]
                    if len(body) > JSON_MAX_BYTES:
                        raise _too_large()
                    if not message["more_body"]:
                        break
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "too_slow", "The body did not arrive in time.") from None
    check_json(bytes(body))
    first: list[Any] = [gone or {"type": "http.request", "body": bytes(body), "more_body": False}]

    async def again() -> Any:
        return first.pop() if first else await receive()

    return again


def _media_type(content_type: str) -> tuple[str, str]:
    """The media type and its charset, both lower-case."""
    media, *parameters = (part.strip().lower() for part in content_type.split(";"))
    pairs = dict(parameter.partition("=")[::2] for parameter in parameters)
    return media, pairs.get("charset", "").strip('"')


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid("A key stands twice in one JSON object.")
    return found


def _invalid(message: str) -> Refusal:
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "validation_error", message)


def _too_large() -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"A JSON body may have up to {JSON_MAX_BYTES:,} bytes."
    )
