"""The only writer: what the service states and what runners say becomes true here.

Opened by the app's lifespan. It reads the event stream from the position stored with the last events, so neither a
restart nor a wiped Redis loses anything: what it has it ignores, what is missing the runners send again.
"""

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from jobs import events, redis_server
from jobs.bus import BEGINNING, UNREACHABLE, Bus
from jobs.errors import Misconfigured, Unavailable, UnknownExport, WrongState
from jobs.events import Event, JobProgressed, RunnerReported
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import Kind
from service import projection, tasks
from service.batch import DeadLetter, Position
from service.hub import Hub, Published
from service.ledger import Ledger, Write
from service.records import JobRecord, RunnerView
from service.store import Store

log = structlog.get_logger()

_BLOCK_S = 1.0
_RETRY_S = 0.5
_TIDY_EVERY_S = 60.0
_DEAD_LETTER_BYTES = 1 << 16  # of an entry nobody can read, this much is kept
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Recorder(Ledger):
    """A ledger that listens to the runners."""

    def __init__(self, settings: Settings, root: DataRoot, store: Store, hub: Hub, bus: Bus) -> None:
        super().__init__(store, hub)
        self.up_since: float | None = None
        """Since when service and Redis are both up, on the monotonic clock; None while they are not."""
        self.is_redis_lost = False
        """Whether the last attempt to reach Redis failed; before the first attempt it is not lost."""
        self._settings = settings
        self._root = root
        self._bus = bus
        self._runners: dict[str, RunnerView] = {}
        self._reported = asyncio.Event()
        self._position: Position | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def runners(self) -> Mapping[str, RunnerView]:
        """Every runner heard since the service started."""
        return self._runners

    async def next_report(self) -> None:
        """Return when a runner reports next."""
        await self._reported.wait()

    async def start(self) -> None:
        await self.open()
        self._position = await self._store.position()
        self._tasks = [
            asyncio.create_task(self._listen_forever(), name="intake"),
            asyncio.create_task(self._tidy_forever(), name="tidy"),
        ]

    async def stop(self) -> None:
        """End the intake, then write what waits."""
        await tasks.end(*self._tasks)
        await self.close()

    # -- deleting

    async def delete(self, job_id: str) -> None:
        """Forget an ended job and its exports.

        Raises:
            WrongState: it, or an export of it, has not ended.
        """
        exports = await self._store.children(job_id)
        job_ids = [job_id, *(export.job_id for export in exports)]
        if any(known in self.live for known in job_ids):
            raise WrongState("The job or an export of it has not ended yet; cancel it first, then delete it.")
        await self._store.remove(job_ids)

    async def delete_export(self, export_id: str) -> None:
        """Forget a completed export.

        Raises:
            UnknownExport: there is none of that id.
        """
        record = await self._store.job(export_id)
        if record is None or record.kind is not Kind.EXPORT or export_id in self.live:
            raise UnknownExport
        await self._store.remove([export_id])

    # -- listening

    async def catch_up(self, record: JobRecord) -> None:
        """Record the rest of the attempt's journal from the disk, for a runner that cannot send it any more."""
        journal = self._root.attempt(record.job_id, record.attempt).journal
        lines = await asyncio.to_thread(_lines_after, journal, record.recorded_n)
        said = []
        for line in lines:
            try:
                said.append((events.decode_event(line), line))
            except _UNDECODABLE as error:
                log.warning("journal.undecodable", job_id=record.job_id, attempt=record.attempt, error=str(error))
                break
        await self.commit(Write(events=said))

    async def _listen_forever(self) -> None:
        while True:
            try:
                await self._listen()
            except UNREACHABLE as error:
                await self._wait_for_redis(error)
            except Unavailable as error:  # the database: nothing was recorded, so the position stands
                log.warning("intake.waiting", error=error.message)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                log.exception("intake.failed")
                await asyncio.sleep(_RETRY_S)

    async def _listen(self) -> None:
        """Take what the stream has, from the stored position, or from its beginning under another epoch."""
        epoch = await self._bus.epoch()
        if self.up_since is None:
            self.up_since, self.is_redis_lost = time.monotonic(), False
            log.info("redis.reached", epoch=epoch)
            self.on_change()
        position = self._position
        if position is None or position.epoch != epoch:
            position = Position(epoch, BEGINNING)
        entries = await self._bus.read_events(position.after, block_s=_BLOCK_S)
        if entries:
            await self._take(epoch, entries)

    async def _wait_for_redis(self, error: Exception) -> None:
        if not self.is_redis_lost:
            log.warning("redis.lost", error=str(error))
            self.up_since, self.is_redis_lost = None, True
            self.on_change()
        try:
            await asyncio.to_thread(redis_server.ensure, self._settings)
        except (Misconfigured, OSError) as failure:
            log.warning("redis.absent", error=str(failure))
        await asyncio.sleep(_RETRY_S)

    async def _take(self, epoch: str, entries: Sequence[tuple[str, bytes]]) -> None:
        """Record a batch with its position, then show what is not recorded."""
        batch = _Intake(epoch)
        for entry_id, body in entries:
            batch.take(entry_id, body)
        await self._commit_each_or_all(batch)
        self._position = batch.position
        for progressed, body in batch.progress.values():
            self._progress(progressed, body)
        for report in batch.reports.values():
            self._hear(report)

    async def _commit_each_or_all(self, batch: "_Intake") -> None:
        """Commit a batch; one that the database refuses goes entry by entry, the guilty ones to the dead letters."""
        if not batch.events and not batch.dead_letters:
            return  # reports only: not worth a transaction, reading them again does no harm
        try:
            await self.commit(Write(batch.said, batch.dead_letters, batch.position))
        except Unavailable:
            raise
        except Exception:
            for position, event, body in batch.events:
                await self._commit_or_bury(position, event, body)
            await self.commit(Write(dead_letters=batch.dead_letters, position=batch.position))

    async def _commit_or_bury(self, position: Position, event: Event, body: bytes) -> None:
        try:
            await self.commit(Write(events=[(event, body)], position=position))
        except Unavailable:
            raise
        except Exception as error:  # decodable, but nothing the database can hold
            await self.commit(Write(dead_letters=[_dead(position, body, error)], position=position))

    def _progress(self, event: JobProgressed, body: bytes) -> None:
        record = self._live.get(event.job_id)
        following = projection.progress(record, event) if record else None
        if following is not None and following is not record:
            self._live[event.job_id] = following
            self._hub.publish([Published(None, event.job_id, events.type_of(event), body)])

    def _hear(self, report: RunnerReported) -> None:
        before = self._runners.get(report.runner_id)
        same_boot = before is not None and before.report.boot == report.boot
        self._runners[report.runner_id] = RunnerView(
            report=report,
            heard_at=time.monotonic(),
            lease_s=self._settings.lease_s,
            previous=before.report if before and same_boot else None,
        )
        self._reported.set()
        self._reported = asyncio.Event()
        self.on_change()

    # -- keeping house

    async def _tidy_forever(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            try:
                await self.tidy()
            except (Unavailable, sqlite3.Error, *UNREACHABLE) as error:
                log.warning("tidy.failed", error=str(error))

    async def tidy(self) -> None:
        """Keep the write-ahead log and the event stream short: drop what is recorded."""
        await self._store.checkpoint()
        position = self._position
        if position is not None and position.epoch == await self._bus.epoch():
            await self.commit(Write(position=position))
            await self._bus.forget_events(position.after)


class _Intake:
    """A read of the stream, sorted by what becomes of it."""

    def __init__(self, epoch: str) -> None:
        self.position = Position(epoch, BEGINNING)
        self.events: list[tuple[Position, Event, bytes]] = []
        self.dead_letters: list[DeadLetter] = []
        self.progress: dict[str, tuple[JobProgressed, bytes]] = {}  # the last of each job
        self.reports: dict[str, RunnerReported] = {}  # the last of each runner

    @property
    def said(self) -> list[tuple[Event, bytes | None]]:
        return [(event, body) for _, event, body in self.events]

    def take(self, entry_id: str, body: bytes) -> None:
        self.position = Position(self.position.epoch, entry_id)
        try:
            message = events.decode_message(body)
        except _UNDECODABLE as error:
            self.dead_letters.append(_dead(self.position, body, error))
            return
        if isinstance(message, RunnerReported):
            self.reports[message.runner_id] = message
        elif isinstance(message, JobProgressed):
            self.progress[message.job_id] = (message, body)
        else:
            self.events.append((self.position, message, body))


def _dead(position: Position, body: bytes, error: Exception) -> DeadLetter:
    log.warning("event.dead_letter", entry=position.after, error=str(error), bytes=len(body))
    return DeadLetter(position, datetime.now(UTC), f"{type(error).__name__}: {error}", body[:_DEAD_LETTER_BYTES])


def _lines_after(journal: Path, n: int) -> list[bytes]:
    """The whole lines of a journal behind line `n`; none when there is no such file."""
    try:
        with journal.open("rb") as file:
            return [line[:-1] for line in itertools.islice(file, n, None) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
