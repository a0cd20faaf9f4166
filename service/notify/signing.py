"""Secrets and signatures, so that a receiver knows who speaks. Source: Standard Webhooks 1.0, with RFC 2104's HMAC."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable

_PREFIX = "whsec_"
_KEY_BYTES = 32


def new_secret() -> str:
    """A random one, as receivers' libraries take it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def headers(texts: Iterable[str], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The three headers of a message. Each secret signs, so a receiver may know any of them; `at_s` is Unix time."""
    signed = f"{message_id}.{at_s}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{_signature(text, signed)}" for text in texts),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
