"""Fan-out after the commit: whoever listens in this process hears what was just recorded.

The recorder publishes; sockets and event streams subscribe; a synchronous route expects a job's end.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from service.records import JobRecord

Item = tuple[int | None, str, bytes]
"""(seq, type, event as JSON); `job.progressed` has no seq."""

Types = frozenset[str] | None
QUEUE_BYTES = 1 << 20


class Published(msgspec.Struct, frozen=True):
    """One event for the subscribers."""

    seq: int | None
    job_id: str
    type: str
    body: bytes


class Subscription:
    """What one listener has not taken yet, at most `QUEUE_BYTES`.

    Iterate it for batches in the order of `seq`. Of `job.progressed` only the newest of each job waits. The iteration
    ends when the hub closes, when `close` is called, or when the listener was too slow: then `lagging` is True, what
    waited is dropped, and the listener goes on from the store.
    """

    def __init__(self, hub: "Hub", key: tuple[str | None, Types]) -> None:
        self.lagging = False
        self._hub = hub
        self.key = key
        self._waiting: deque[Item] = deque()
        self._waiting_bytes = 0
        self._progress: dict[str, Item] = {}
        self._news = asyncio.Event()
        self._closed = False

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> list[Item]:
        await self._news.wait()
        batch = [*self._waiting, *self._progress.values()]
        if not batch:  # only a close rings without leaving anything
            raise StopAsyncIteration
        self._waiting.clear()
        self._progress.clear()
        self._waiting_bytes = 0
        if not self._closed:
            self._news.clear()
        return batch

    def close(self) -> None:
        """Hear no more; what waits can still be taken."""
        self._hub.forget(self)
        self._closed = True
        self._news.set()

    def push(self, events: Iterable[Published]) -> None:
        for event in events:
            if event.seq is None:
                self._progress[event.job_id] = (None, event.type, event.body)
            else:
                self._waiting.append((event.seq, event.type, event.body))
                self._waiting_bytes += len(event.body)
        self._news.set()
        if self._waiting_bytes > QUEUE_BYTES:
            self.lagging = True
            self._waiting.clear()
            self._progress.clear()
            self.close()


class Hub:
    """One a process. Nothing here waits for a listener."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self._subscriptions: dict[tuple[str | None, Types], set[Subscription]] = {}
        self._expected: dict[str, set[asyncio.Future[JobRecord]]] = {}

    def subscribe(self, job_id: str | None = None, types: Types = None) -> Subscription:
        """Events of one job or of all, of these types or of all, from now on."""
        subscription = Subscription(self, (job_id, types))
        if self.closing.is_set():
            subscription.close()
        else:
            self._subscriptions.setdefault(subscription.key, set()).add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        group = self._subscriptions.get(subscription.key, set())
        group.discard(subscription)
        if not group:
            self._subscriptions.pop(subscription.key, None)

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
        for (job_id, types), group in list(self._subscriptions.items()):
            about = events if job_id is None else by_job.get(job_id, [])
            wanted = [event for event in about if types is None or event.type in types]
            if wanted:
                for subscription in list(group):
                    subscription.push(wanted)
        for record in ended:
            for future in list(self._expected.get(record.job_id, ())):
                if not future.done():
                    future.set_result(record)

    def close(self) -> None:
        """The service ends: end every subscription; whoever waits for a job watches `closing`."""
        self.closing.set()
        for group in list(self._subscriptions.values()):
            for subscription in list(group):
                subscription.close()

    def _expect_no_more(self, job_id: str, future: "asyncio.Future[JobRecord]") -> None:
        futures = self._expected.get(job_id, set())
        futures.discard(future)
        if not futures:
            self._expected.pop(job_id, None)
