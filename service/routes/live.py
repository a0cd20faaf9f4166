"""Live events: a WebSocket of many subscriptions, one of one job, and server-sent events. All tell the same feed.

A socket stays open after the job's last event, with bookmarks, until the client closes it: a client that comes back
on its own would only come back. An event stream of one job ends after it, whatever types it tells, and says the last
event's id; a client that comes back with nothing left to hear is told so with 204, which stops it.

A stream that takes nothing for as long as a socket may is cut off: it cannot be told why, and comes back with its
`Last-Event-ID` when it reads on.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import structlog
from litestar import Request, Response, get, websocket
from litestar.params import Parameter
from litestar.response import Stream

from jobs import frames
from jobs.errors import InvalidInput, UnknownJob
from jobs.lifecycle import TERMINAL, TRANSITIONS
from service import conversation
from service.conversation import AnySocket, Conversation, OpenSockets, part, reset
from service.cursors import After, EventTypes, LastEventId, types_of
from service.feed import Feed, Feeds, Gap
from service.hub import Piece
from service.problems import documented
from service.recorder import Recorder
from service.records import Interest, Types
from service.store import Store

log = structlog.get_logger()

_NOW = "now"  # a cursor: behind everything that is stored
_ENDS = frozenset(
    str(event.__struct_config__.tag) for event, steps in TRANSITIONS.items() if TERMINAL.issuperset(steps.values())
)


@websocket("/train/{job_id:str}/ws")
async def socket_of_job(socket: AnySocket, job_id: str, recorder: Recorder, feeds: Feeds, sockets: OpenSockets) -> None:
    """Events of one job behind the cursor `after`, of all types or of those in `types`, then live."""
    await socket.accept()
    record = await recorder.job(job_id)
    if record is None:
        problem = frames.Problem(code="job_not_found", message=UnknownJob().message)
        await part(socket, frames.CLOSE_NO_SUCH_JOB, problem)
        return
    after = await _after(socket, feeds.store, "0")
    if after is not None:
        interest = Interest.of(job_id, types_of(socket.query_params.get("types")))
        with sockets.counted():
            await Conversation(socket, feeds, recorder).hold(interest, after, record.status.value)


@websocket("/ws")
async def socket_of_all_jobs(socket: AnySocket, recorder: Recorder, feeds: Feeds, sockets: OpenSockets) -> None:
    """Whatever the client subscribes to. With `after` or `types` in the address the events of all jobs, unasked."""
    await socket.accept()
    is_implied = bool({"after", "types"} & socket.query_params.keys())
    after = await _after(socket, feeds.store, _NOW)
    if after is not None:
        interest = Interest(types=types_of(socket.query_params.get("types"))) if is_implied else None
        with sockets.counted():
            await Conversation(socket, feeds, recorder).hold(interest, after)


@get("/events", tags=["events"], responses=documented(404, 422), media_type="text/event-stream")
async def event_stream(
    request: Request[Any, Any, Any],
    recorder: Recorder,
    feeds: Feeds,
    job: Annotated[str | None, Parameter(max_length=64, description="Only this job's events.")] = None,
    types: EventTypes = None,
    after: After = 0,
    last_event_id: LastEventId = None,
) -> Response[Any]:
    """Events behind a cursor, then live, as server-sent events: `id` is the event's `seq`, `data` its JSON."""
    cursor = after if last_event_id is None else last_event_id
    if cursor > await feeds.store.head_seq():
        raise InvalidInput("is beyond the newest event", path="after")
    record = None if job is None else await recorder.known(job)
    if record is not None and record.has_ended and cursor >= record.last_seq:
        return Response(None, status_code=204)
    wanted = types_of(types)
    heard = wanted if wanted is None or job is None else wanted | _ENDS
    feed = feeds.feed(Interest.of(job, heard), cursor)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    told = _stream(feed, job, wanted, recorder, request.scope["state"]["transport"])  # `serve.Http` gives it
    return Stream(told, media_type="text/event-stream", headers=headers)


async def _stream(
    feed: Feed, job_id: str | None, wanted: Types, recorder: Recorder, transport: asyncio.Transport
) -> AsyncIterator[bytes]:
    """Ends with the job, where it is about one; `wanted` are the types it tells."""
    yield b"retry: 2000\n\n"
    async for said in feed.follow():
        with _Taking(transport):
            yield _lines(said, feed.interest, wanted)
        if job_id is not None and await _is_told(job_id, feed, recorder):
            return


class _Taking:
    """Around a yield, which is as long as its send: a client that takes nothing of it for long is cut off."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._left = sys.maxsize  # bytes that wait for the client
        self._moved_at = self._loop.time()

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(conversation.LOOK_EVERY_S, self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left, now = self._transport.get_write_buffer_size(), self._loop.time()
        if left < self._left:
            self._left, self._moved_at = left, now
        if now - self._moved_at > conversation.SEND_WITHIN_S:
            log.info("stream.cut_off")
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(conversation.LOOK_EVERY_S, self._look)


def _lines(said: Piece | Gap, interest: Interest, wanted: Types) -> bytes:
    if isinstance(said, Gap):
        return b"event: reset\ndata: " + frames.encode(reset(said, interest)) + b"\n\n"
    return b"".join(_encode(seq, kind, body, wanted) for seq, kind, body in said.items) or b": still here\n\n"


async def _is_told(job_id: str, feed: Feed, recorder: Recorder) -> bool:
    """Whether a job has no event left to tell; one that was deleted has none."""
    record = await recorder.job(job_id)
    return record is None or (record.has_ended and feed.position >= record.last_seq)


def _encode(seq: int | None, kind: str, body: bytes, wanted: Types) -> bytes:
    """An event; of one that is not wanted only the id, which the client remembers for the next time."""
    number = b"" if seq is None else b"id: %d\n" % seq
    return number + (b"data: " + body + b"\n\n" if wanted is None or kind in wanted else b"\n")


async def _after(socket: AnySocket, store: Store, default: str) -> int | None:
    """The cursor a client comes with; without a valid one the conversation is over."""
    text, head = socket.query_params.get("after", default), await store.head_seq()
    after = head if text == _NOW else _cursor(text)
    if after is not None and after <= head:
        return after
    message = "`after` must be the `seq` of an event, 0, or `now`."
    await part(socket, frames.CLOSE_BAD_FRAME, frames.Problem(code="bad_cursor", message=message))
    return None


def _cursor(text: str) -> int | None:
    """The cursor of a query string; None for anything that can be none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
