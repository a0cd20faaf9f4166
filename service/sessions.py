"""A browser's session: a cookie that proves its bearer knew the token. An address bar cannot send a header.

Called by `access` and `routes/session`. Nothing is stored: the cookie is its end and a signature keyed by the token,
so a session outlives restarts, and another token ends all of them. Source of the signature: RFC 2104, with SHA-256.
"""

import hashlib
import hmac
import re
import time
from typing import Annotated

import msgspec
from msgspec import Meta

COOKIE = "training_session"
LIFETIME_S = 30 * 24 * 3600

_VALUE = re.compile(r"(\d{1,12})\.([0-9a-f]{64})", re.ASCII)


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The service's token, in exchange for a session."""

    token: Annotated[str, Meta(max_length=4096)]


def issue(token: str) -> str:
    """The value of a new session's cookie."""
    expires = int(time.time()) + LIFETIME_S
    return f"{expires}.{_signature(token, expires)}"


def is_open(cookies: str, token: str) -> bool:
    """Whether one of a request's cookies is a session of this token that has not ended."""
    pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
    return any(name == COOKIE and _is_valid(value, token) for name, _, value in pairs)


def _is_valid(value: str, token: str) -> bool:
    match = _VALUE.fullmatch(value)
    if match is None:
        return False
    expires = int(match[1])
    return hmac.compare_digest(match[2], _signature(token, expires)) and time.time() < expires


def _signature(token: str, expires: int) -> str:
    return hmac.new(token.encode(), f"session {expires}".encode(), hashlib.sha256).hexdigest()
