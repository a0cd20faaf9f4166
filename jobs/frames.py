"""What a socket says in either direction: one tagged union each way. SSE tells the same events one by one.

`seq`, the store's row number, is the only cursor for the outside. A client that reconnects says the last `seq` it
has and misses nothing; it ignores a `seq` it already has.

`/api/ws` carries many subscriptions. After `welcome` the client sends `subscribe` as often as it likes, each under a
name of its own, `sub`, which stands in every frame about it. What it hears, in this order:

1. `snapshot`, if it asked for one: the jobs as they stand at `seq`; the last frame of it has no `more`
2. `events` behind `after`, or behind the snapshot, page by page
3. `bookmark`: from here on it is live
4. `events` as they happen, at most one frame in 40 ms (in 100 ms with `calm`, and while many clients come at once),
   and a `bookmark` after 15 s without any

`from_seq` of a frame of events is `to_seq` of the one before, so a hole would show. The points of a frame
(`metrics.logged`) come in columns, of `job.progressed` only the last of each job: then the frame says `merged`.
`reset` means that too much was missed to be told: load `snapshot_url`, and go on with what follows. An `error` about
one subscription ends that one alone. A `ping` wants a `pong` within 30 s.

Two older ways need no frame from the client: `/api/train/{job_id}/ws?after=&types=` for one job, and
`/api/ws?after=&types=` for all. Their frames have no `sub`, and every event stands by itself.

Close codes: 1012 the service restarts, 4008 the client is too slow (both: come back after `retry_after_s`);
4400 a bad frame, 4401 no or a wrong token, 4404 no such job (these three: stop).
A client is too slow that does not take a frame within 30 s. An event stream that takes nothing for as long is cut off
without a word; its client comes back with `Last-Event-ID`, and misses nothing.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

SUBSCRIPTIONS_MAX = 32
JOBS_MAX = 1000
NAME_MAX = 64

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX)]


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="frame", omit_defaults=True):
    """Base of all frames."""


# -- said by the service


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection may do: subscriptions, bytes of a client's frame, bytes that wait for a slow client, events
    that are told again; and after how many seconds of silence each side says something."""

    subscriptions: int
    frame_bytes: int
    queue_bytes: int
    replay_events: int
    bookmark_s: float
    pong_within_s: float


class Welcome(Frame, frozen=True, kw_only=True, tag="welcome"):
    """First frame. `conn` names the connection in the service's log. `after` is the cursor that what follows unasked
    begins behind, or the newest event; `status` that of the job whose socket it is."""

    server_time: datetime
    after: int
    conn: str = ""
    limits: Limits | None = None
    status: str | None = None


class Snapshot(Frame, frozen=True, kw_only=True, tag="snapshot"):
    """The subscription's jobs, newest first, as `GET /api/jobs/{job_id}` answers them, not older than `seq`. Of all
    jobs or of a tag only the newest: `before` leads to the next page of `GET /api/jobs`. `more` of it follows."""

    sub: str
    seq: int
    jobs: tuple[dict[str, Any], ...]
    before: str | None = None
    more: bool = False


class Numbered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event and its cursor; `seq` is absent for `job.progressed`, which is not stored."""

    event: msgspec.Raw
    seq: int | None = None


class Points(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Several `metrics.logged` of one attempt in columns: entry i of each is the i-th. `epoch` is empty where none
    has one."""

    job_id: str
    attempt: int
    seq: tuple[int, ...]
    n: tuple[int, ...]
    at: tuple[datetime, ...]
    step: tuple[int, ...]
    values: dict[str, tuple[float | None, ...]]
    epoch: tuple[float, ...] = ()
    total_steps: int | None = None
    total_epochs: int | None = None


class Events(Frame, frozen=True, kw_only=True, tag="events"):
    """Events in the order of `seq`: everything with `from_seq` < seq ≤ `to_seq` that the subscription covers. Where
    it is `merged`, `points` stand in their order beside the other events, and of progress only the last is told."""

    events: tuple[Numbered, ...]
    from_seq: int
    to_seq: int
    points: tuple[Points, ...] = ()
    merged: bool = False
    sub: str | None = None


class Bookmark(Frame, frozen=True, kw_only=True, tag="bookmark"):
    """Nothing is missing: the client is fresh up to `seq`."""

    seq: int
    sub: str | None = None


class Reset(Frame, frozen=True, kw_only=True, tag="reset"):
    """The client must load the snapshot and go on with what follows here."""

    reason: Literal["too_far_behind", "lagging"]
    snapshot_url: str
    sub: str | None = None


class Problem(Frame, frozen=True, kw_only=True, tag="error"):
    """What was wrong with the client's frame or cursor. With `sub`, only that subscription is not there."""

    code: str
    message: str
    sub: str | None = None


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Whether the client is still there: it says `pong`."""

    at: datetime


class Bye(Frame, frozen=True, kw_only=True, tag="bye"):
    """The service closes; come back after so many seconds."""

    code: Literal["restarting", "slow"]
    retry_after_s: float


# -- said by the client


class Auth(Frame, frozen=True, kw_only=True, tag="auth"):
    """The token, as the first frame within 5 s, where one is configured and no header can carry it."""

    token: str


class Subscribe(Frame, frozen=True, kw_only=True, tag="subscribe"):
    """Hear these `jobs`, those with a `tag`, or `all`: exactly one of the three; of these `types` or of all types.

    It begins behind `after`, without one behind now. `initial` says whether the jobs' state is told first; it is
    unless there is an `after`.
    """

    sub: Name
    jobs: Annotated[tuple[str, ...], msgspec.Meta(max_length=JOBS_MAX)] | None = None
    tag: str | None = None
    all: bool = False
    types: tuple[str, ...] | None = None
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    initial: Literal["snapshot", "none"] | None = None
    calm: bool = False


class Unsubscribe(Frame, frozen=True, kw_only=True, tag="unsubscribe"):
    """Hear no more under this name; what is on its way still comes."""

    sub: Name


class Pong(Frame, frozen=True, kw_only=True, tag="pong"):
    """The answer to `ping`."""


ServerFrame = Welcome | Snapshot | Events | Bookmark | Reset | Problem | Ping | Bye
ClientFrame = Auth | Subscribe | Unsubscribe | Pong

encode = msgspec.json.Encoder().encode
decode_client = msgspec.json.Decoder(ClientFrame).decode
decode_server = msgspec.json.Decoder(ServerFrame).decode

CLOSE_RESTARTING = 1012
CLOSE_SLOW = 4008
CLOSE_BAD_FRAME = 4400
CLOSE_UNAUTHENTICATED = 4401
CLOSE_NO_SUCH_JOB = 4404
