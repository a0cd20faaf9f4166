"""Live events: a WebSocket of one job, another of all jobs, and server-sent events. All encode the same feed.

A socket stays open after the job's last event, with bookmarks, until the client closes it: a client that comes back
on its own would only come back. An event stream of one job ends after it, whatever types it tells, and says the last
event's id; a client that comes back with nothing left to hear is told so with 204, which stops it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Response, WebSocket, get, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Parameter
from litestar.response import Stream

from jobs import frames
from jobs.errors import InvalidInput, UnknownJob
from jobs.frames import ServerFrame
from jobs.lifecycle import TERMINAL, TRANSITIONS
from service.cursors import After, EventTypes, LastEventId, types_of
from service.feed import Feed, Gap
from service.hub import Hub, Piece, Types
from service.problems import documented
from service.recorder import Recorder
from service.store import Store

AnySocket = WebSocket[Any, Any, Any]

SEND_WITHIN_S = 30.0
FAREWELL_WITHIN_S = 1.0
COME_BACK_AFTER_S = 2.0
_NOW = "now"  # a cursor: behind everything that is stored
_ENDS = frozenset(
    str(event.__struct_config__.tag) for event, steps in TRANSITIONS.items() if TERMINAL.issuperset(steps.values())
)


class OpenSockets:
    """The conversations under way, so that a service that ends can let them say goodbye."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While the present task holds a conversation."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("outside of a task")
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def wait_for_end(self, within_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)


class _BadFrame(Exception):
    """The client sent something that is no frame."""


@websocket("/train/{job_id:str}/ws")
async def socket_of_job(
    socket: AnySocket, job_id: str, store: Store, recorder: Recorder, hub: Hub, sockets: OpenSockets
) -> None:
    """Events of one job behind the cursor `after`, then live."""
    await socket.accept()
    record = await recorder.job(job_id)
    if record is None:
        await _end(socket, frames.CLOSE_NO_SUCH_JOB, frames.Problem(code="job_not_found", message=UnknownJob().message))
        return
    after = await _after(socket, store, "0")
    if after is not None:
        welcome = frames.Welcome(server_time=datetime.now(UTC), after=after, status=record.status.value)
        with sockets.counted():
            await _converse(socket, welcome, Feed(store, hub, job_id=job_id, types=None, after=after))


@websocket("/ws")
async def socket_of_all_jobs(socket: AnySocket, store: Store, hub: Hub, sockets: OpenSockets) -> None:
    """Events of all jobs, of all types or of those in `types`, behind the cursor `after` or from now on, then live."""
    await socket.accept()
    after = await _after(socket, store, _NOW)
    if after is not None:
        wanted = types_of(socket.query_params.get("types"))
        with sockets.counted():
            welcome = frames.Welcome(server_time=datetime.now(UTC), after=after)
            await _converse(socket, welcome, Feed(store, hub, job_id=None, types=wanted, after=after))


@get("/events", tags=["events"], responses=documented(404, 422), media_type="text/event-stream")
async def event_stream(
    store: Store,
    recorder: Recorder,
    hub: Hub,
    job: Annotated[str | None, Parameter(max_length=64, description="Only this job's events.")] = None,
    types: EventTypes = None,
    after: After = 0,
    last_event_id: LastEventId = None,
) -> Response[Any]:
    """Events behind a cursor, then live, as server-sent events: `id` is the event's `seq`, `data` its JSON."""
    cursor = after if last_event_id is None else last_event_id
    if cursor > await store.head_seq():
        raise InvalidInput("is beyond the newest event", path="after")
    record = None if job is None else await recorder.known(job)
    if record is not None and record.has_ended and cursor >= record.last_seq:
        return Response(None, status_code=204)
    wanted = types_of(types)
    heard = wanted if wanted is None or job is None else wanted | _ENDS
    feed = Feed(store, hub, job_id=job, types=heard, after=cursor)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(_stream(feed, wanted, recorder), media_type="text/event-stream", headers=headers)


async def _stream(feed: Feed, wanted: Types, recorder: Recorder) -> AsyncIterator[bytes]:
    """Ends with the feed's job; `wanted` are the types it tells."""
    yield b"retry: 2000\n\n"
    async for said in feed.follow():
        if isinstance(said, Gap):
            yield b"event: reset\ndata: " + frames.encode(_reset(said, feed.job_id)) + b"\n\n"
        elif said.items:
            yield b"".join(_encode(seq, kind, body, wanted) for seq, kind, body in said.items)
        else:
            yield b": still here\n\n"
        if feed.job_id is not None and await _is_told(feed.job_id, feed, recorder):
            return


async def _is_told(job_id: str, feed: Feed, recorder: Recorder) -> bool:
    """Whether a job has no event left to tell; one that was deleted has none."""
    record = await recorder.job(job_id)
    return record is None or (record.has_ended and feed.position >= record.last_seq)


def _encode(seq: int | None, kind: str, body: bytes, wanted: Types) -> bytes:
    """An event; of one that is not wanted only the id, which the client remembers for the next time."""
    number = b"" if seq is None else b"id: %d\n" % seq
    return number + (b"data: " + body + b"\n\n" if wanted is None or kind in wanted else b"\n")


class _Sends:
    """The sends of a conversation: whether one of them goes nowhere. A timeout around each cost a third of it all."""

    def __init__(self, socket: AnySocket) -> None:
        self._socket = socket
        self._begun = self._ended = self._seen = 0

    async def text(self, text: str) -> None:
        self._begun += 1
        await self._socket.send_text(text)
        self._ended += 1

    def is_stuck(self) -> bool:
        """Whether the one under way was so already when this was asked last."""
        seen, self._seen = self._seen, self._begun
        return self._ended < self._begun == seen


async def _converse(socket: AnySocket, welcome: ServerFrame, feed: Feed) -> None:
    """Tell and listen side by side: a handler that only tells never notices that its client has left."""
    sends = _Sends(socket)
    telling = asyncio.ensure_future(_tell(sends, welcome, feed))
    listening = asyncio.ensure_future(_listen(socket))
    try:
        while not telling.done() and not listening.done() and not sends.is_stuck():
            await asyncio.wait({telling, listening}, timeout=SEND_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        await _part(socket, telling, listening)
    finally:
        telling.cancel()
        listening.cancel()
        await asyncio.gather(telling, listening, return_exceptions=True)


async def _tell(sends: _Sends, welcome: ServerFrame, feed: Feed) -> None:
    """Ends when the hub closes. Raises OSError or WebSocketDisconnect when the client has left."""
    await sends.text(frames.encode(welcome).decode())
    async for said in feed.follow():
        await sends.text(said.frame if isinstance(said, Piece) else frames.encode(_reset(said, feed.job_id)).decode())


async def _listen(socket: AnySocket) -> None:
    """Ends when the client leaves. It may send its token at any time; Access has judged that."""
    while True:
        message: Any = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            frames.decode_client(message.get("text") or "")
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _BadFrame from error


async def _part(socket: AnySocket, telling: asyncio.Future[None], listening: asyncio.Future[None]) -> None:
    """Say why the conversation ends, unless it was the client who ended it."""
    if listening.done() and listening.exception() is None:
        return
    if listening.done():
        message = "The one frame a client may send is its token."
        await _end(socket, frames.CLOSE_BAD_FRAME, frames.Problem(code="bad_frame", message=message))
    elif not telling.done():  # and neither is what it sends: the client takes nothing
        telling.cancel()
        await _end(socket, frames.CLOSE_SLOW)
    elif telling.exception() is None:
        farewell = frames.Bye(code="restarting", retry_after_s=COME_BACK_AFTER_S)
        await _end(socket, frames.CLOSE_RESTARTING, farewell)
    elif not isinstance(telling.exception(), (OSError, WebSocketDisconnect)):
        telling.result()


async def _end(socket: AnySocket, code: int, last: ServerFrame | None = None) -> None:
    """Close towards a client that may have left by now (OSError), or may not listen (TimeoutError)."""
    with suppress(OSError, WebSocketDisconnect):
        async with asyncio.timeout(FAREWELL_WITHIN_S):
            if last is not None:
                await _send(socket, last)
            await socket.close(code)


async def _send(socket: AnySocket, frame: ServerFrame) -> None:
    await socket.send_text(frames.encode(frame).decode())


def _reset(gap: Gap, job_id: str | None) -> frames.Reset:
    return frames.Reset(reason=gap.reason, snapshot_url="/api/jobs" if job_id is None else f"/api/jobs/{job_id}")


async def _after(socket: AnySocket, store: Store, default: str) -> int | None:
    """The cursor a client comes with; without a valid one the conversation is over."""
    text, head = socket.query_params.get("after", default), await store.head_seq()
    after = head if text == _NOW else _cursor(text)
    if after is not None and after <= head:
        return after
    message = "`after` must be the `seq` of an event, 0, or `now`."
    await _end(socket, frames.CLOSE_BAD_FRAME, frames.Problem(code="bad_cursor", message=message))
    return None


def _cursor(text: str) -> int | None:
    """The cursor of a query string; None for anything that can be none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
