"""One WebSocket: what the client says, what its subscriptions hear, and how it ends.

Called by `routes/live`. Tell and listen stand side by side: a handler that only tells never notices that its client
has left, and blocks the shutdown. Each subscription is told by a task of its own; whatever ends the conversation
first decides how. What waits for a client is bounded by its backlog (`hub`), so a slow one delays nobody.
"""

import asyncio
import secrets
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from random import uniform
from typing import Any, NamedTuple

import msgspec
import structlog
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect

from jobs import frames
from jobs.errors import UnknownJob
from jobs.frames import ServerFrame, Subscribe
from service import answers, hub
from service.feed import TOO_FAR_BEHIND, Feed, Feeds, Gap
from service.hub import Backlog
from service.recorder import Recorder
from service.records import Interest, JobRecord

log = structlog.get_logger()

AnySocket = WebSocket[Any, Any, Any]

SEND_WITHIN_S = 30.0
PING_EVERY_S = 20.0
PONG_WITHIN_S = 30.0
LOOK_EVERY_S = 5.0
FAREWELL_WITHIN_S = 1.0
COME_BACK_WITHIN_S = (1.0, 10.0)  # at random, so that a thousand clients do not come back as one
SNAPSHOT_JOBS = 100
FRAME_MAX_BYTES = 64 * 1024  # of what a client says: the ids of a thousand jobs


class OpenSockets:
    """The conversations under way, so that a service that ends can let them say goodbye. `left` counts those before."""

    def __init__(self) -> None:
        self.left = 0
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
            self.left += 1

    async def wait_for_end(self, within_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)


class End(NamedTuple):
    """How a conversation ends: nothing is left to say to a client that left."""

    code: int | None = None
    last: ServerFrame | None = None


class _Refused(Exception):
    """A subscription that cannot be."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


class _Sends:
    """The sends of a conversation: since when nothing moves. A timeout around each cost a third of it all."""

    def __init__(self, socket: AnySocket) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        self._moved_at = 0.0

    async def text(self, text: str) -> None:
        if not self._under_way:
            self._moved_at = self._loop.time()
        self._under_way += 1
        try:
            await self._socket.send_text(text)
        finally:
            self._under_way -= 1
            self._moved_at = self._loop.time()

    async def frame(self, frame: ServerFrame) -> None:
        await self.text(frames.encode(frame).decode())

    @property
    def stuck_for_s(self) -> float:
        return self._loop.time() - self._moved_at if self._under_way else 0.0


class Conversation:
    """With one client, from its welcome to its end."""

    def __init__(self, socket: AnySocket, feeds: Feeds, recorder: Recorder) -> None:
        self._socket = socket
        self._feeds = feeds
        self._hub = feeds.hub
        self._store = feeds.store
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._sends = _Sends(socket)
        self._backlog = Backlog()
        self._over: asyncio.Future[End] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tellers: dict[str, asyncio.Task[None]] = {}  # of named subscriptions
        self._telling = 0  # the tellers at work, also the one without a name
        self._pinged_at: float | None = None  # the first ping that was not answered yet
        self._next_ping_at = self._loop.time() + PING_EVERY_S
        self._conn = secrets.token_hex(4)

    async def hold(self, implied: Interest | None = None, after: int = 0, status: str | None = None) -> None:
        """Until either side ends it. `implied` is what a client hears without having said so, behind `after`."""
        welcome = frames.Welcome(
            server_time=datetime.now(UTC), conn=self._conn, limits=_limits(), after=after, status=status
        )
        try:
            with self._hub.at_close(self._hub_closes):
                self._start(self._open(welcome, implied, after))
                end = await self._watch()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if end.code is not None:
            log.info("socket.closed", conn=self._conn, code=end.code)
            await part(self._socket, end.code, end.last)

    async def _open(self, welcome: frames.Welcome, implied: Interest | None, after: int) -> None:
        await self._sends.frame(welcome)
        self._start(self._listen())
        if implied is not None:
            self._tell_on(None, self._feeds.feed(implied, after, backlog=self._backlog))

    # -- how it ends

    async def _watch(self) -> End:
        """Return when it is over, which a client that takes or answers nothing makes it."""
        while True:
            await asyncio.wait({self._over}, timeout=LOOK_EVERY_S)
            now = self._loop.time()
            if self._over.done():
                return self._over.result()
            if self._sends.stuck_for_s > SEND_WITHIN_S:
                return _too_slow()
            if self._pinged_at is not None and now - self._pinged_at > PONG_WITHIN_S:
                return _too_slow()
            if self._tellers and now >= self._next_ping_at and not self._sends.stuck_for_s:
                self._next_ping_at = now + PING_EVERY_S
                self._pinged_at = self._pinged_at or now
                self._start(self._sends.frame(frames.Ping(at=datetime.now(UTC))))

    def _end(self, end: End) -> None:
        if not self._over.done():
            self._over.set_result(end)

    def _hub_closes(self) -> None:
        """Whoever hears something is told the rest first."""
        if not self._telling:
            self._end(_restarting())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or self._over.done():
            return
        if isinstance(error, (OSError, WebSocketDisconnect)):
            self._end(End())  # the client has left
        else:
            self._over.set_exception(error)

    # -- what the client says

    async def _listen(self) -> None:
        """Ends when the client leaves."""
        while True:
            message: Any = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self._end(End())
                return
            try:
                frame = frames.decode_client(message.get("text") or "")
            except (msgspec.MsgspecError, RecursionError) as error:
                problem = frames.Problem(code="bad_frame", message=f"That is no frame of a client: {error}")
                self._end(End(frames.CLOSE_BAD_FRAME, problem))
                return
            match frame:
                case frames.Subscribe():
                    await self._subscribe(frame)
                case frames.Unsubscribe():
                    await self._unsubscribe(frame.sub)
                case frames.Pong():
                    self._pinged_at = None
                case frames.Auth():
                    pass  # it may send its token at any time; Access has judged that

    async def _subscribe(self, wish: Subscribe) -> None:
        try:
            self._check_room(wish)
            interest = await self._interest(wish)
            seq = await self._store.head_seq()  # before the jobs are read: what happens between is told twice
            after = seq if wish.after is None else wish.after
            if after > seq:
                raise _Refused("bad_cursor", "`after` lies beyond the newest event: subscribe without it.")
        except _Refused as refused:
            await self._sends.frame(frames.Problem(code=refused.code, message=refused.message, sub=wish.sub))
            return
        feed = self._feeds.feed(interest, after, calm=wish.calm, backlog=self._backlog)
        wants_snapshot = wish.initial == "snapshot" or (wish.initial is None and wish.after is None)
        snapshot = await self._snapshot(wish.sub, interest, seq) if wants_snapshot else ()
        self._tellers[wish.sub] = self._tell_on(wish.sub, feed, snapshot)

    async def _unsubscribe(self, sub: str) -> None:
        teller = self._tellers.pop(sub, None)
        if teller is None:
            problem = frames.Problem(code="no_such_subscription", message="There is none of that name.", sub=sub)
            await self._sends.frame(problem)
        else:
            teller.cancel()
            await asyncio.wait({teller})

    def _check_room(self, wish: Subscribe) -> None:
        if wish.sub in self._tellers:
            raise _Refused("name_taken", "There is a subscription of that name: end it, or choose another name.")
        if len(self._tellers) >= frames.SUBSCRIPTIONS_MAX:
            raise _Refused("too_many", f"A connection carries {frames.SUBSCRIPTIONS_MAX} subscriptions: end one.")

    async def _interest(self, wish: Subscribe) -> Interest:
        if [wish.jobs is not None, wish.tag is not None, wish.all].count(True) != 1:
            raise _Refused("bad_subscription", "Say exactly one of `jobs`, `tag` and `all`.")
        for job_id in wish.jobs or ():
            if await self._recorder.job(job_id) is None:
                raise _Refused("job_not_found", f"{UnknownJob().message} ({job_id})")
        jobs = None if wish.jobs is None else frozenset(wish.jobs)
        return Interest(jobs=jobs, tag=wish.tag, types=None if wish.types is None else frozenset(wish.types))

    # -- what it hears

    async def _snapshot(self, sub: str, interest: Interest, seq: int) -> Sequence[frames.Snapshot]:
        """The jobs of an interest as they stand, in frames of a size that every client takes."""
        if interest.jobs is not None:
            found = [await self._recorder.job(job_id) for job_id in sorted(interest.jobs)]
            records = sorted((job for job in found if job), key=lambda job: job.submitted_seq, reverse=True)
        else:
            stored = await self._store.jobs(tag=interest.tag, limit=SNAPSHOT_JOBS)
            records = [self._recorder.live.get(record.job_id, record) for record in stored]
        is_page = interest.jobs is None and len(records) == SNAPSHOT_JOBS
        return list(_snapshot_frames(sub, seq, records, self._recorder, records[-1].job_id if is_page else None))

    def _tell_on(self, sub: str | None, feed: Feed, snapshot: Sequence[frames.Snapshot] = ()) -> asyncio.Task[None]:
        self._telling += 1
        task = self._start(self._tell(sub, feed, snapshot))
        task.add_done_callback(self._told)
        return task

    def _told(self, _: "asyncio.Task[None]") -> None:
        self._telling -= 1
        if self._hub.closing.is_set():
            self._hub_closes()

    async def _tell(self, sub: str | None, feed: Feed, snapshot: Sequence[frames.Snapshot]) -> None:
        """Ends when the hub closes. Raises OSError or WebSocketDisconnect when the client has left."""
        for part_of_it in snapshot:
            await self._sends.frame(part_of_it)
        async for said in feed.follow():
            if isinstance(said, Gap):
                await self._sends.frame(reset(said, feed.interest, sub))
            else:
                await self._sends.text(said.frame if sub is None else said.frame_of(sub))


async def part(socket: AnySocket, code: int, last: ServerFrame | None = None) -> None:
    """Close towards a client that may have left by now (OSError), or may not listen (TimeoutError)."""
    with suppress(OSError, WebSocketDisconnect):
        if last is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_WITHIN_S):
                    await socket.send_text(frames.encode(last).decode())
        async with asyncio.timeout(FAREWELL_WITHIN_S):
            await socket.close(code)


def reset(gap: Gap, interest: Interest, sub: str | None = None) -> frames.Reset:
    """What a listener is told that misses too much."""
    only = next(iter(interest.jobs)) if interest.jobs and len(interest.jobs) == 1 else None
    url = "/api/jobs" if only is None else f"/api/jobs/{only}"
    return frames.Reset(reason=gap.reason, snapshot_url=url, sub=sub)


def _snapshot_frames(
    sub: str, seq: int, records: Iterable[JobRecord], recorder: Recorder, before: str | None
) -> Iterator[frames.Snapshot]:
    positions = answers.queue_positions(recorder.live.values())
    gathered: list[dict[str, Any]] = []
    size = 0
    for record in records:
        body = msgspec.json.encode(answers.job(record, positions))
        if gathered and size + len(body) > hub.PIECE_BYTES:
            yield frames.Snapshot(sub=sub, seq=seq, jobs=tuple(gathered), more=True)
            gathered, size = [], 0
        gathered.append(msgspec.json.decode(body))
        size += len(body)
    yield frames.Snapshot(sub=sub, seq=seq, jobs=tuple(gathered), before=before)


def _limits() -> frames.Limits:
    return frames.Limits(
        subscriptions=frames.SUBSCRIPTIONS_MAX,
        frame_bytes=FRAME_MAX_BYTES,
        queue_bytes=hub.QUEUE_BYTES,
        replay_events=TOO_FAR_BEHIND,
        bookmark_s=hub.QUIET_S,
        pong_within_s=PONG_WITHIN_S,
    )


def _restarting() -> End:
    return End(frames.CLOSE_RESTARTING, frames.Bye(code="restarting", retry_after_s=uniform(*COME_BACK_WITHIN_S)))


def _too_slow() -> End:
    return End(frames.CLOSE_SLOW, frames.Bye(code="slow", retry_after_s=COME_BACK_WITHIN_S[0]))
