"""The bodies of messages: an event in the words of a format. A format is a function here and a line in `FORMATS`."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec


class _At(msgspec.Struct):
    """Of an event only when it happened."""

    at: datetime


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a receiver gets. `data` is the event as docs/events.md describes it, `seq` its cursor; a ping has none."""

    type: str
    timestamp: datetime
    seq: int | None = None
    data: msgspec.Raw


_encode = msgspec.json.Encoder().encode
_decode_at = msgspec.json.Decoder(_At).decode

Format = Callable[[str, int | None, bytes], bytes]
"""From type, seq and event to a body; the same bytes for every try."""


def standard(kind: str, seq: int | None, event: bytes) -> bytes:
    """As Standard Webhooks recommends it."""
    return _encode(Message(type=kind, timestamp=_decode_at(event).at, seq=seq, data=msgspec.Raw(event)))


FORMATS: Mapping[str, Format] = {"standard": standard}


def ping(webhook_id: str, at: datetime) -> bytes:
    """The event that nothing happened."""
    event: dict[str, Any] = {"type": "webhook.ping", "at": at, "webhook_id": webhook_id}
    return _encode(event)
