"""What a subscriber receives: one tagged union for WebSocket and, event by event, for SSE.

`seq`, the store's row number, is the only cursor for the outside. A client that reconnects says the last `seq` it
has and misses nothing; it ignores a `seq` it already has.
"""

from datetime import datetime
from typing import Literal

import msgspec


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", omit_defaults=True):
    """Base of all frames."""


class Welcome(Frame, frozen=True, kw_only=True, tag="welcome"):
    """First frame. `after` is the cursor the replay begins behind."""

    server_time: datetime
    after: int
    status: str | None = None


class Numbered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event and its cursor; `seq` is absent for `job.progressed`, which is not stored."""

    event: msgspec.Raw
    seq: int | None = None


class Events(Frame, frozen=True, kw_only=True, tag="events"):
    """Events in the order of `seq`: everything with `from_seq` < seq ≤ `to_seq` that the subscription covers."""

    events: tuple[Numbered, ...]
    from_seq: int
    to_seq: int


class Bookmark(Frame, frozen=True, kw_only=True, tag="bookmark"):
    """Nothing new: the client is fresh up to `seq`."""

    seq: int


class Reset(Frame, frozen=True, kw_only=True, tag="reset"):
    """The client must load the snapshot and go on from its cursor."""

    reason: Literal["too_far_behind", "lagging"]
    snapshot_url: str


class Problem(Frame, frozen=True, kw_only=True, tag="error"):
    """What was wrong with the client's frame or cursor."""

    code: str
    message: str


class Bye(Frame, frozen=True, kw_only=True, tag="bye"):
    """The server closes; come back after so many seconds."""

    code: str
    retry_after_s: float


class Auth(Frame, frozen=True, kw_only=True, tag="auth"):
    """The one frame a client sends: its token, where one is configured and no header can carry it."""

    token: str


ServerFrame = Welcome | Events | Bookmark | Reset | Problem | Bye

encode = msgspec.json.Encoder().encode
decode_client = msgspec.json.Decoder(Auth).decode
decode_server = msgspec.json.Decoder(ServerFrame).decode

CLOSE_RESTARTING = 1012
CLOSE_SLOW = 4008
CLOSE_BAD_FRAME = 4400
CLOSE_UNAUTHENTICATED = 4401
CLOSE_NO_SUCH_JOB = 4404
