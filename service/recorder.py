"""The only writer: what the service states and what runners say becomes true here.

Opened by the app's lifespan. It reads the event stream from the position stored with the last events, so neither a
restart nor a wiped Redis loses anything: what it has it ignores, what is missing the runners send again.
"""

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import structlog

from jobs import events, redis_server, tasks
from jobs.bus import BEGINNING, UNREACHABLE, Bus, said_at_s
from jobs.errors import Misconfigured, Unavailable
from jobs.events import JobProgressed, RunnerReported
from jobs.paths import DataRoot
from jobs.settings import Settings
from service import projection, thinning
from service.hub import Hub, Published
from service.ledger import Ledger, Write
from service.records import JobRecord, RunnerView
from service.store import Store
from service.transaction import DeadLetter, Entry, Line, Position

log = structlog.get_logger()

_BLOCK_S = 1.0
_RETRY_S = 0.5
_GATHER_S = 0.01  # between two reads: what runners say in quick succession shares a commit
_TIDY_EVERY_S = 60.0
_THINNED_AT_ONCE = 10  # jobs; each is a transaction that others wait for
_DEAD_LETTER_BYTES = 1 << 16  # of an entry nobody can read, this much is kept
_JOURNAL = "journal"  # stands for the stream's epoch in dead letters that were read from a disk
_decode_line = msgspec.json.Decoder(Line).decode
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Found(msgspec.Struct, frozen=True):
    """An entry, and where it was read: in the stream, or in a journal on the disk."""

    position: Position
    entry: Entry

    @property
    def stream_position(self) -> Position | None:
        return None if self.position.epoch == _JOURNAL else self.position


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

    # -- listening

    async def catch_up(self, record: JobRecord) -> None:
        """Record the rest of the attempt's journal from the disk, for a runner that cannot send it any more.

        A line that cannot be recorded is put aside like an entry of the stream. Raises OSError, Unavailable.
        """
        journal = self._root.attempt(record.job_id, record.attempt).journal
        lines = await asyncio.to_thread(_lines_after, journal, record.recorded_n)
        found = []
        for n, body in enumerate(lines, record.recorded_n + 1):
            line = Line(record.job_id, record.attempt, n)
            position = Position(_JOURNAL, f"{line.job_id}.{line.attempt}.{n}")
            try:
                found.append(Found(position, (events.decode_event(body), body)))
            except _UNDECODABLE as error:
                found.append(Found(position, _dead(position, body, error, line)))
        await self._commit_together_or_each(found)

    async def _listen_forever(self) -> None:
        while True:
            with self.upkeep.of("intake", Unavailable):  # the database: nothing was recorded, so the position stands
                await self._listen_or_wait()
                continue
            await asyncio.sleep(_RETRY_S)

    async def _listen_or_wait(self) -> None:
        try:
            await self._listen()
            await asyncio.sleep(_GATHER_S)
        except UNREACHABLE as error:
            await self._wait_for_redis(error)

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
            clock_s = await self._bus.clock_s()
            await self._take(epoch, entries, clock_s)
            if clock_s - said_at_s(entries[-1][0]) > self._settings.report_every_s:
                self.up_since = time.monotonic()  # what the runners say now stands further on: nobody is silent yet

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

    async def _take(self, epoch: str, entries: Sequence[tuple[str, bytes]], clock_s: float) -> None:
        """Record a batch with its position, then show what is not recorded; `clock_s` is the stream's clock."""
        intake = _Intake(epoch)
        for entry_id, body in entries:
            intake.take(entry_id, body)
        await self._commit_together_or_each(intake.found)
        self._position = intake.position
        for progressed, body in intake.progress.values():
            self._progress(progressed, body)
        for report, entry_id in intake.reports.values():
            self._hear(report, clock_s - said_at_s(entry_id))

    async def _commit_together_or_each(self, found: Sequence[Found]) -> None:
        """Commit what was read; when the database refuses it, one by one, the guilty to the dead letters."""
        if not found:
            return  # reports only: not worth a transaction, reading them again does no harm
        try:
            await self.commit(Write([one.entry for one in found], found[-1].stream_position))
        except Unavailable:
            raise
        except Exception:
            for one in found:
                await self._commit_or_bury(one)

    async def _commit_or_bury(self, found: Found) -> None:
        try:
            await self.commit(Write([found.entry], found.stream_position))
        except Unavailable:
            raise
        except Exception as error:  # decodable, but nothing the database can hold
            body = found.entry.body if isinstance(found.entry, DeadLetter) else found.entry[1] or b""
            letter = _dead(found.position, body, error)
            await self.commit(Write([letter], found.stream_position))

    def _progress(self, event: JobProgressed, body: bytes) -> None:
        record = self._live.get(event.job_id)
        following = projection.progress(record, event) if record else None
        if record is not None and following is not None and following is not record:
            self._live[event.job_id] = following
            self._hub.publish([Published(None, event.job_id, events.type_of(event), body, record.tags)])

    def _hear(self, report: RunnerReported, age_s: float) -> None:
        """Note a report and when it was said: one that lay in the stream for long is no sign of life."""
        before = self._runners.get(report.runner_id)
        same_boot = before is not None and before.report.boot == report.boot
        self._runners[report.runner_id] = RunnerView(
            report=report,
            heard_at=time.monotonic() - max(0.0, age_s),
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
            with self.upkeep.of("tidy", Unavailable, sqlite3.Error, *UNREACHABLE):
                await self.tidy()

    async def tidy(self) -> None:
        """Keep database, write-ahead log and event stream short: drop what is old or recorded."""
        await self._thin_old()
        await self._store.checkpoint()
        position = self._position
        if position is not None and position.epoch == await self._bus.epoch():
            await self.commit(Write(position=position))
            await self._bus.forget_events(position.after)

    async def _thin_old(self) -> None:
        days = self._settings.points_kept_days
        if not days:
            return
        for job_id in await self._store.to_thin(datetime.now(UTC) - timedelta(days=days), _THINNED_AT_ONCE):
            steps = await asyncio.to_thread(thinning.kept_steps, await self._store.metrics(job_id))
            await self._store.thin(job_id, steps)
            log.info("points.thinned", job_id=job_id)


class _Intake:
    """A read of the stream, sorted by what becomes of it."""

    def __init__(self, epoch: str) -> None:
        self.position = Position(epoch, BEGINNING)
        self.found: list[Found] = []
        self.progress: dict[str, tuple[JobProgressed, bytes]] = {}  # the last of each job
        self.reports: dict[str, tuple[RunnerReported, str]] = {}  # the last of each runner, and its entry id

    def take(self, entry_id: str, body: bytes) -> None:
        self.position = Position(self.position.epoch, entry_id)
        try:
            message = events.decode_message(body)
        except _UNDECODABLE as error:
            self.found.append(Found(self.position, _dead(self.position, body, error)))
            return
        if isinstance(message, RunnerReported):
            self.reports[message.runner_id] = (message, entry_id)
        elif isinstance(message, JobProgressed):
            self.progress[message.job_id] = (message, body)
        else:
            self.found.append(Found(self.position, (message, body)))


def _dead(position: Position, body: bytes, error: Exception, line: Line | None = None) -> DeadLetter:
    """What is put aside; without a `line`, its envelope may still say which line of which journal it is."""
    log.warning("event.dead_letter", entry=position.after, error=str(error), bytes=len(body))
    kept, what = body[:_DEAD_LETTER_BYTES], f"{type(error).__name__}: {error}"
    return DeadLetter(position, datetime.now(UTC), what, kept, line or _line_of(body))


def _line_of(body: bytes) -> Line | None:
    try:
        return _decode_line(body)
    except _UNDECODABLE:
        return None


def _lines_after(journal: Path, n: int) -> list[bytes]:
    """The whole lines of a journal behind line `n`; none when there is no such file."""
    try:
        with journal.open("rb") as file:
            return [line[:-1] for line in itertools.islice(file, n, None) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
