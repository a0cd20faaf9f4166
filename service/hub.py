"""Fan-out after the commit: whoever listens in this process hears what was just recorded.

The recorder publishes; sockets and event streams subscribe; a synchronous route expects a job's end. Those who listen
to the same events are a group. A group that was quiet hears at once, and from then on whatever a tick brings at the
tick's end, as one piece that all of them share and that is encoded once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from jobs import columns, frames
from service.records import Interest, JobRecord, Types

Item = tuple[int | None, str, bytes]
"""(seq, type, event as JSON); `job.progressed` has no seq."""

TICK_S = 0.04
CALM_TICK_S = 0.1
QUIET_S = 15.0
PIECE_BYTES = 256 * 1024  # of event JSON; common clients refuse a message beyond 1 MiB
PIECE_EVENTS = 500
QUEUE_BYTES = 1 << 20  # of one client, over all it listens to
AT_ONCE = 50  # listeners woken in one turn of the event loop
CROWD = 50  # listeners that come within a second: all hear less often then, so that these catch up soon

_BEGINNING = '{"frame":"events",'


class Published(msgspec.Struct, frozen=True):
    """One event for the subscribers; `tags` are its job's."""

    seq: int | None
    job_id: str
    type: str
    body: bytes
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Piece:
    """Everything with from_seq < seq ≤ to_seq that a listener asked for, in order.

    Without items it says that the listener is fresh up to `to_seq`: nothing came for a while, or a replay is over.
    """

    items: Sequence[Item]
    from_seq: int
    to_seq: int
    superseded: bool = False
    """Whether older progress was left out."""
    _named: dict[str, str] = field(default_factory=dict)

    @cached_property
    def frame(self) -> str:
        """As a WebSocket without a handshake tells it: every event by itself."""
        if not self.items:
            return frames.encode(frames.Bookmark(seq=self.to_seq)).decode()
        numbered = tuple(numbered for numbered, _ in self._numbered())
        return frames.encode(frames.Events(events=numbered, from_seq=self.from_seq, to_seq=self.to_seq)).decode()

    def frame_of(self, sub: str) -> str:
        """As a named subscription tells it: points in columns. Encoded once, whatever the names."""
        if sub not in self._named:
            self._named[sub] = self._frame_of(sub)
        return self._named[sub]

    @cached_property
    def size(self) -> int:
        return sum(len(body) for _, _, body in self.items)

    def _frame_of(self, sub: str) -> str:
        if not self.items:
            return frames.encode(frames.Bookmark(seq=self.to_seq, sub=sub)).decode()
        return f'{_BEGINNING}"sub":{msgspec.json.encode(sub).decode()},{self._merged[len(_BEGINNING) :]}'

    @cached_property
    def _merged(self) -> str:
        single, points = columns.merge(self._numbered())
        merged = bool(points) or self.superseded
        frame = frames.Events(events=single, from_seq=self.from_seq, to_seq=self.to_seq, points=points, merged=merged)
        return frames.encode(frame).decode()

    def _numbered(self) -> Iterator[tuple[frames.Numbered, str]]:
        return ((frames.Numbered(event=msgspec.Raw(body), seq=seq), kind) for seq, kind, body in self.items)


def in_pieces(items: Iterable[Item], from_seq: int, to_seq: int, *, superseded: bool = False) -> Iterator[Piece]:
    """Items in pieces of a size that every client takes; without items, none."""
    gathered: list[Item] = []
    size, reached = 0, from_seq
    for item in items:
        if gathered and (size + len(item[2]) > PIECE_BYTES or len(gathered) == PIECE_EVENTS):
            yield Piece(gathered, from_seq, reached, superseded)
            gathered, size, from_seq = [], 0, reached
        gathered.append(item)
        size += len(item[2])
        reached = item[0] or reached
    if gathered:
        yield Piece(gathered, from_seq, to_seq, superseded)


class Backlog:
    """What waits for one client, over all its subscriptions."""

    def __init__(self) -> None:
        self.bytes = 0


class Subscription:
    """The pieces that one listener has not taken yet; with those of the client's other ones at most `QUEUE_BYTES`.

    The iteration ends when the hub closes, when `close` is called, or when the client was too slow: then `lagging`
    is True, what waited is dropped, and the listener goes on from the store, which holds no progress and tells
    points in columns.
    """

    def __init__(self, hub: "Hub", key: "Key", backlog: Backlog) -> None:
        self.lagging = False
        self.key = key
        self._hub = hub
        self._waiting: deque[Piece] = deque()
        self._backlog = backlog
        self._news = asyncio.Event()
        self._closed = False

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._drop()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Piece:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        piece = self._waiting.popleft()
        self._backlog.bytes -= piece.size
        return piece

    def close(self) -> None:
        """Hear no more; what waits can still be taken."""
        self._hub.forget(self)
        self._closed = True
        self._news.set()

    def push(self, piece: Piece) -> None:
        if self._closed:  # within this very turn, by the piece before it: what comes now would hide the gap
            return
        self._waiting.append(piece)
        self._backlog.bytes += piece.size
        self._news.set()
        if self._backlog.bytes > QUEUE_BYTES:
            self.lagging = True
            self._drop()
            self.close()

    def _drop(self) -> None:
        self._backlog.bytes -= sum(piece.size for piece in self._waiting)
        self._waiting.clear()


class Key(msgspec.Struct, frozen=True):
    """What those who share their pieces have in common; whoever is `calm` hears less often."""

    interest: Interest
    calm: bool = False


class Group:
    """Those who listen to the same events. Of `job.progressed` only the newest of each job waits for the tick."""

    def __init__(self, hub: "Hub", key: Key) -> None:
        self.members: set[Subscription] = set()
        self._hub = hub
        self._is_calm = key.calm
        self._told = hub.head  # the end of the last piece, where the next one begins
        self._pending: dict[int | str, Item] = {}
        self._superseded = False
        self._pieces: Sequence[Piece] = ()
        self._left: list[Subscription] = []  # the members that have not got `_pieces` yet
        self._is_quiet = True
        self._loop = asyncio.get_running_loop()
        self._next_at = 0.0
        self._timer = self._loop.call_later(QUIET_S, self._remind)

    def take(self, events: Iterable[Published]) -> None:
        for event in events:
            key = event.job_id if event.seq is None else event.seq
            if self._pending.pop(key, None) is not None:  # the newer progress also comes later
                self._superseded = True
            self._pending[key] = (event.seq, event.type, event.body)
        if self._is_quiet and self._pending:
            self._tell()

    def close(self) -> None:
        """Tell what waits, and end every listener."""
        self._timer.cancel()
        self._push_all()
        self._tell()
        self._push_all()
        self.abandon()

    def abandon(self) -> None:
        """End every listener without a further word."""
        self._timer.cancel()
        for member in list(self.members):
            member.close()

    def dissolve(self) -> None:
        """Nobody listens any more."""
        self._timer.cancel()

    def _tell(self) -> None:
        self._is_quiet = False
        items = self._pending.values()
        pieces = list(in_pieces(items, self._told, self._hub.head, superseded=self._superseded))
        self._told = self._hub.head
        self._pending.clear()
        self._superseded = False
        self._begin(pieces, CALM_TICK_S if self._is_calm or self._hub.is_crowded else TICK_S)

    def _tick(self) -> None:
        if self._pending:
            self._tell()
        else:
            self._is_quiet = True
            self._timer = self._loop.call_later(QUIET_S, self._remind)

    def _remind(self) -> None:
        self._is_quiet = False
        self._begin([Piece((), self._told, self._hub.head)], 0)

    def _begin(self, pieces: Sequence[Piece], pause_s: float) -> None:
        """Push pieces to every member, and tick when that is done, but not before the pause is over."""
        self._timer.cancel()
        self._pieces, self._left = pieces, list(self.members)
        self._next_at = self._loop.time() + pause_s
        self._push_some()

    def _push_some(self) -> None:
        """To a part of the members: what else the process does, such as recording, takes its turn in between."""
        part, self._left = self._left[:AT_ONCE], self._left[AT_ONCE:]
        for member in part:
            for piece in self._pieces:
                member.push(piece)
        if self._left:
            self._timer = self._loop.call_later(0, self._push_some)
        elif self.members:  # the last one may have been let go just now
            self._timer = self._loop.call_at(self._next_at, self._tick)

    def _push_all(self) -> None:
        while self._left:
            self._push_some()
        self._timer.cancel()


class Hub:
    """One a process. Nothing here waits for a listener."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.head = 0
        """The newest event that was handed out."""
        self._groups: dict[Key, Group] = {}
        self._expected: dict[str, set[asyncio.Future[JobRecord]]] = {}
        self._at_close: set[Callable[[], None]] = set()
        self._came_at: deque[float] = deque(maxlen=CROWD)

    @property
    def is_crowded(self) -> bool:
        """Whether many come at once, as they do when a service has restarted: each of them wants the past, too."""
        return len(self._came_at) == CROWD and time.monotonic() - self._came_at[0] < 1

    def subscribe(self, job_id: str | None = None, types: Types = None) -> Subscription:
        """Events of one job or of all, of these types or of all, from now on; maybe some from just before, too."""
        return self.listen(Interest.of(job_id, types))

    def listen(self, interest: Interest, *, calm: bool = False, backlog: Backlog | None = None) -> Subscription:
        """The same for any interest. What waits counts to the backlog of its client."""
        subscription = Subscription(self, Key(interest, calm), backlog or Backlog())
        if self.closing.is_set():
            subscription.close()
        else:
            if subscription.key not in self._groups:
                self._groups[subscription.key] = Group(self, subscription.key)
            self._groups[subscription.key].members.add(subscription)
            self._came_at.append(time.monotonic())
        return subscription

    def forget(self, subscription: Subscription) -> None:
        group = self._groups.get(subscription.key)
        if group is not None:
            group.members.discard(subscription)
            if not group.members:
                self._groups.pop(subscription.key).dissolve()

    @contextmanager
    def at_close(self, call: Callable[[], None]) -> Iterator[None]:
        """Within it, closing the hub calls this; so does a hub that is closed already."""
        self._at_close.add(call)
        try:
            if self.closing.is_set():
                call()
            yield
        finally:
            self._at_close.discard(call)

    def expect(self, job_id: str) -> "asyncio.Future[JobRecord]":
        """The job's record at its end; cancel the future to stop waiting. Call it before the job can end."""
        future: asyncio.Future[JobRecord] = asyncio.get_running_loop().create_future()
        self._expected.setdefault(job_id, set()).add(future)
        future.add_done_callback(lambda done: self._expect_no_more(job_id, done))
        return future

    def publish(self, events: Sequence[Published], ended: Iterable[JobRecord] = ()) -> None:
        """Hand out committed events, and the records of the jobs that ended with them."""
        by_job: dict[str, list[Published]] = {}
        for event in events:
            by_job.setdefault(event.job_id, []).append(event)
            self.head = event.seq or self.head
        for key, group in list(self._groups.items()):
            group.take(_of_interest(key.interest, events, by_job))
        for record in ended:
            for future in list(self._expected.get(record.job_id, ())):
                if not future.done():
                    future.set_result(record)

    def close(self) -> None:
        """The service ends: end every subscription; whoever waits for a job watches `closing`."""
        self._close(Group.close)

    def abandon(self) -> None:
        """The same after a `publish` that failed: some have not heard of what was handed out, and a later word would
        say that they are fresh."""
        self._close(Group.abandon)

    def _close(self, end: Callable[[Group], None]) -> None:
        self.closing.set()
        for group in list(self._groups.values()):
            end(group)
        for call in list(self._at_close):
            call()

    def _expect_no_more(self, job_id: str, future: "asyncio.Future[JobRecord]") -> None:
        futures = self._expected.get(job_id, set())
        futures.discard(future)
        if not futures:
            self._expected.pop(job_id, None)


def _of_interest(
    interest: Interest, events: Sequence[Published], by_job: Mapping[str, Sequence[Published]]
) -> Iterable[Published]:
    jobs, tag, types = interest.jobs, interest.tag, interest.types
    if jobs is not None:
        concerned = [job_id for job_id in by_job if job_id in jobs]
        if len(concerned) < 2:
            events = by_job[concerned[0]] if concerned else ()
        else:
            events = [event for event in events if event.job_id in jobs]
    if tag is None and types is None:
        return events
    return (event for event in events if (tag is None or tag in event.tags) and (types is None or event.type in types))
