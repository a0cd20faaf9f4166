"""Writing to the truth: many callers, one transaction at a time, and the projections of live jobs in memory.

`recorder.Recorder` is this ledger and the reader of what runners say. Callers that come while a transaction is being
written share the next one, so durability costs one fsync for all of them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import structlog

from jobs.errors import TrainingError, Unavailable, UnknownExport, UnknownJob, WrongState
from jobs.events import Event, JobSubmitted
from jobs.lifecycle import Status
from jobs.specs import EvaluateSpec, ExportSpec, FinetuneSpec, GenerateSpec, JobSpec, Kind, PlanSpec
from service.hub import Hub
from service.records import JobRecord, WebhookRecord
from service.store import Store
from service.transaction import Entry, Position, Transaction
from service.upkeep import Upkeep

log = structlog.get_logger()

_STOPPING = "The service is stopping; send the request again in a moment."


class Write(msgspec.Struct, frozen=True):
    """What one caller wants recorded together, in order, and how far the stream was read for it.

    `disabled` are webhooks that get nothing any more; the event that says so is one of the entries.
    """

    entries: Sequence[Entry] = ()
    position: Position | None = None
    disabled: Sequence[WebhookRecord] = ()


class Ledger:
    """`on_change` is called after a commit that changed the state of a job; `upkeep` is the whole service's."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self.on_change: Callable[[], None] = _nobody
        self.upkeep = Upkeep()
        self._store = store
        self._hub = hub
        self._live: dict[str, JobRecord] = {}
        self._head = 0
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._turn = asyncio.Lock()  # recording and deleting take turns
        self._removed: set[str] = set()
        self._news = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None

    @property
    def live(self) -> Mapping[str, JobRecord]:
        """The jobs that have not ended, in the order of submission, with their newest progress."""
        return self._live

    async def job(self, job_id: str) -> JobRecord | None:
        return self._live.get(job_id) or await self._store.job(job_id)

    async def known(self, job_id: str) -> JobRecord:
        """The record of a job that should be there.

        Raises:
            UnknownJob: there is none of that id.
        """
        record = await self.job(job_id)
        if record is None:
            raise UnknownJob
        return record

    async def completed(self, limit: int, kinds: Sequence[Kind] = ()) -> list[JobRecord]:
        """The newest jobs that ended with a result; of all kinds, or of these."""
        return await self._store.jobs(kinds=kinds, status=Status.COMPLETED, limit=limit)

    async def record(self, events: Sequence[Event]) -> list[JobRecord]:
        """Record what the service itself states; the jobs' records afterwards, one an event.

        An event that does not fit its job's state any more is ignored.

        Raises:
            Unavailable: the database cannot be written.
            UnknownJob: a job, or one that it builds on, was deleted meanwhile.
        """
        await self.commit(Write([(event, None) for event in events]))
        records = [await self.job(event.job_id) for event in events]
        if None in records:
            raise UnknownJob
        return [record for record in records if record]

    async def commit(self, write: Write) -> None:
        """Record, and return when it is on the disk and was handed out.

        Raises:
            Unavailable: the database cannot be written.
        """
        if self._closing or self.upkeep.is_over:
            raise Unavailable(_STOPPING)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, future))
        self._news.set()
        with unavailable("nothing was recorded"):
            await future

    # -- deleting

    async def delete(self, job_id: str) -> list[str]:
        """Forget an ended job and its exports; their ids, whose files nothing needs any more.

        Raises:
            WrongState: one of them has not ended, or a job that has not ended uses one of them.
            Unavailable: the database cannot be written; nothing was deleted.
        """
        async with self._turn:
            with unavailable("nothing was deleted"):
                job_ids = [job_id, *(export.job_id for export in await self._store.children(job_id))]
                await self._remove(job_ids)
        return job_ids

    async def delete_export(self, export_id: str) -> None:
        """Forget a completed export.

        Raises:
            UnknownExport: there is none of that id.
            WrongState: a job that has not ended uses it.
            Unavailable: the database cannot be written; nothing was deleted.
        """
        async with self._turn:
            with unavailable("nothing was deleted"):
                if await self._store.export(export_id) is None:
                    raise UnknownExport
                await self._remove([export_id])

    async def _remove(self, job_ids: Sequence[str]) -> None:
        """Within a turn, so that no job that uses one of them is recorded meanwhile."""
        removed = frozenset(job_ids)
        users = [job.job_id for job in self._live.values() if removed & ({job.job_id} | _used(job.spec))]
        if users:
            raise WrongState(
                f"{job_ids[0]} is used by {', '.join(users)}, not ended yet: cancel that, or wait for its end."
            )
        await self._store.remove(job_ids)
        self._removed |= removed

    def _refuse_orphan(self, entry: Entry) -> None:
        """A job that was admitted before what it builds on was deleted would end without files."""
        if isinstance(entry, tuple) and isinstance(entry[0], JobSubmitted) and self._removed & _used(entry[0].spec):
            raise UnknownJob("What this job builds on was deleted a moment ago: name another training or export.")

    # -- the writer

    async def open(self) -> None:
        """Load the live jobs and begin to write."""
        self._head = self._hub.head = await self._store.head_seq()
        self._live = {record.job_id: record for record in await self._store.live_jobs()}
        self._writer = asyncio.create_task(self._write_forever(), name="ledger")

    async def close(self) -> None:
        """Write what waits, then end."""
        self._closing = True
        self._news.set()
        if self._writer is not None:
            await self._writer

    async def _write_forever(self) -> None:
        with self.upkeep.of_vital("ledger"):
            while self._waiting or not self._closing:
                await self._news.wait()
                self._news.clear()
                taken, self._waiting = self._waiting, []
                if taken:
                    async with self._turn:
                        await self._write_together(taken)

    async def _write_together(self, taken: list[tuple[Write, asyncio.Future[None]]]) -> None:
        try:
            await self._write([write for write, _ in taken])
        except Exception as error:  # whatever it is, the callers must hear of it and the next ones be served
            if len(taken) > 1 and not isinstance(error, sqlite3.OperationalError):
                for one in taken:  # a fault of one must not fail the others
                    await self._write_together([one])
                return
            if not isinstance(error, TrainingError):
                log.error("ledger.failed", error=str(error), kind=type(error).__name__)
            _settle(taken, error)
        else:
            _settle(taken, None)

    async def _write(self, writes: Sequence[Write]) -> None:
        if self.upkeep.is_over:
            raise Unavailable(_STOPPING)
        transaction = Transaction(self._live, self._head)
        for write in writes:
            for entry in write.entries:
                self._refuse_orphan(entry)
                transaction.take(entry)
            transaction.position = write.position or transaction.position
            transaction.disabled += write.disabled
        if transaction.ignored:
            log.debug("events.ignored", count=transaction.ignored)
        if not transaction.is_empty:
            await self._store.write(transaction)
            with self.upkeep.of_vital("ledger"):  # what is on the disk is true, also where showing it fails
                self._install(transaction)
            if self.upkeep.is_over:
                self._hub.abandon()

    def _install(self, transaction: Transaction) -> None:
        """The transaction is true: show it to everybody in this process."""
        self._head = transaction.head
        before = {job_id: self._live.get(job_id) for job_id in transaction.records}
        ended = [record for record in transaction.records.values() if record.has_ended]
        self._live |= transaction.records
        for record in ended:
            del self._live[record.job_id]
        self._hub.publish(transaction.published, ended)
        if any(old is None or old.state != transaction.records[job_id].state for job_id, old in before.items()):
            self.on_change()


def _used(spec: JobSpec) -> set[str]:
    """The jobs and exports a job builds on."""
    named: set[str | None] = set()
    if isinstance(spec, FinetuneSpec | PlanSpec):
        named = {spec.config.continue_from}
    elif isinstance(spec, EvaluateSpec | GenerateSpec):
        named = {spec.job_id, spec.export_id}
    elif isinstance(spec, ExportSpec):
        named = {spec.job_id}
    return {job_id for job_id in named if job_id is not None}


@contextmanager
def unavailable(consequence: str) -> Iterator[None]:
    """What SQLite says of a full or locked disk, as an error of ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"The database cannot be written ({error}); {consequence}. "
            "If the disk is full, free some space, then try again."
        ) from error


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
