"""Writing to the truth: many callers, one transaction at a time, and the projections of live jobs in memory.

`recorder.Recorder` is this ledger and the reader of what runners say. Callers that come while a transaction is being
written share the next one, so durability costs one fsync for all of them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from jobs.errors import Unavailable, UnknownJob
from jobs.events import Event
from service.batch import Batch, DeadLetter, Position
from service.hub import Hub
from service.records import JobRecord
from service.store import Store

log = structlog.get_logger()


class Write(msgspec.Struct, frozen=True):
    """What one caller wants recorded together: events with the bytes they came as, and where they were read."""

    events: Sequence[tuple[Event, bytes | None]] = ()
    dead_letters: Sequence[DeadLetter] = ()
    position: Position | None = None


class Ledger:
    """`on_change` is called after a commit that changed the state of a job."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self.on_change: Callable[[], None] = _nobody
        self._store = store
        self._hub = hub
        self._live: dict[str, JobRecord] = {}
        self._head = 0
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._news = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None

    @property
    def live(self) -> Mapping[str, JobRecord]:
        """The jobs that have not ended, in the order of submission, with their newest progress."""
        return self._live

    async def job(self, job_id: str) -> JobRecord | None:
        return self._live.get(job_id) or await self._store.job(job_id)

    async def record(self, events: Sequence[Event]) -> list[JobRecord]:
        """Record what the service itself states; the jobs' records afterwards, one an event.

        An event that does not fit its job's state any more is ignored.

        Raises:
            Unavailable: the database cannot be written.
            UnknownJob: a job was deleted meanwhile.
        """
        await self.commit(Write(events=[(event, None) for event in events]))
        records = [await self.job(event.job_id) for event in events]
        if None in records:
            raise UnknownJob
        return [record for record in records if record]

    async def commit(self, write: Write) -> None:
        """Record, and return when it is on the disk and was handed out.

        Raises:
            Unavailable: the database cannot be written.
        """
        if self._closing:
            raise Unavailable("The service is stopping; send the request again in a moment.")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, future))
        self._news.set()
        try:
            await future
        except sqlite3.OperationalError as error:
            raise Unavailable(
                f"The database cannot be written ({error}); nothing was recorded. "
                "If the disk is full, free some space, then try again."
            ) from error

    async def open(self) -> None:
        """Load the live jobs and begin to write."""
        self._head = await self._store.head_seq()
        self._live = {record.job_id: record for record in await self._store.live_jobs()}
        self._writer = asyncio.create_task(self._write_forever(), name="ledger")

    async def close(self) -> None:
        """Write what waits, then end."""
        self._closing = True
        self._news.set()
        if self._writer is not None:
            await self._writer

    async def _write_forever(self) -> None:
        while self._waiting or not self._closing:
            await self._news.wait()
            self._news.clear()
            taken, self._waiting = self._waiting, []
            if taken:
                await self._write_together(taken)

    async def _write_together(self, taken: list[tuple[Write, asyncio.Future[None]]]) -> None:
        try:
            await self._write([write for write, _ in taken])
        except Exception as error:  # whatever it is, the callers must hear of it and the next ones be served
            if len(taken) > 1 and not isinstance(error, sqlite3.OperationalError):
                for one in taken:  # a fault of one must not fail the others
                    await self._write_together([one])
                return
            log.error("ledger.failed", error=str(error), kind=type(error).__name__)
            _settle(taken, error)
        else:
            _settle(taken, None)

    async def _write(self, writes: Sequence[Write]) -> None:
        batch = Batch(self._live, self._head)
        for write in writes:
            for event, body in write.events:
                batch.add(event, body)
            batch.dead_letters += write.dead_letters
            batch.position = write.position or batch.position
        if batch.ignored:
            log.debug("events.ignored", count=batch.ignored)
        if not batch.is_empty:
            await self._store.write(batch)
            self._install(batch)

    def _install(self, batch: Batch) -> None:
        """The batch is true: show it to everybody in this process."""
        self._head = batch.head
        before = {job_id: self._live.get(job_id) for job_id in batch.records}
        ended = [record for record in batch.records.values() if record.has_ended]
        self._live |= batch.records
        for record in ended:
            del self._live[record.job_id]
        self._hub.publish(batch.published, ended)
        if any(old is None or old.state != batch.records[job_id].state for job_id, old in before.items()):
            self.on_change()


def _settle(taken: list[tuple[Write, asyncio.Future[None]]], error: Exception | None) -> None:
    for _, future in taken:
        if future.done():  # its caller went away
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _nobody() -> None:
    """Nobody wants to know yet."""
