"""The truth about jobs: one SQLite database, one connection that writes, a few that read.

Opened by the app's lifespan; what happens to jobs is written by the recorder alone, what becomes of deliveries by
`notify`. All SQL is here, in `queries.py`, in `outbox.py` and in `migrations/`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import msgspec

from jobs.results import ValidateResult
from jobs.specs import ExportSpec, Kind
from service import outbox
from service.outbox import Outbox, Statements
from service.queries import Series, SortBy
from service.records import JobRecord, steps_of
from service.transaction import Transaction

__all__ = ["Series", "SortBy", "Store"]

MIGRATIONS = Path(__file__).parent / "migrations"
_READERS = 2
_BUSY_MS = 5000

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode

_INSERT_EVENT = "INSERT INTO events (seq, job_id, attempt, n, type, at, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
_UPSERT_JOB = """
    INSERT INTO jobs (submitted_seq, job_id, kind, status, label, parent_id, duration_s, best_eval_loss, record)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (job_id) DO UPDATE SET status = excluded.status, duration_s = excluded.duration_s,
        best_eval_loss = excluded.best_eval_loss, record = excluded.record
"""
_INSERT_TAG = "INSERT OR IGNORE INTO tags (job_id, tag) VALUES (?, ?)"
_INSERT_STEP = "INSERT OR IGNORE INTO data_steps (name, step, job_id) VALUES (?, ?, ?)"
_VOID_POINTS = "DELETE FROM metrics WHERE job_id = ? AND attempt < ? AND step > ?"
_VOID_CHECKPOINTS = "DELETE FROM checkpoints WHERE job_id = ? AND attempt < ?"
_UPSERT_POINT = """
    INSERT OR REPLACE INTO metrics (job_id, series, step, attempt, epoch, value) VALUES (?, ?, ?, ?, ?, ?)
"""
_DELETE_CHECKPOINT = "DELETE FROM checkpoints WHERE job_id = ? AND path = ?"
_UPSERT_CHECKPOINT = """
    INSERT OR REPLACE INTO checkpoints (job_id, path, attempt, step, bytes, metrics, saved_at)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_UPSERT_ARTIFACT = """
    INSERT OR REPLACE INTO artifacts (job_id, path, attempt, kind, bytes, sha256, created_at)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_DEAD_LETTER = """
    INSERT OR REPLACE INTO dead_letters (epoch, entry_id, at, error, body)
    SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM dead_letters WHERE body = ?5)
"""
_TRIM_DEAD_LETTERS = """
    DELETE FROM dead_letters
    WHERE (at, entry_id) <= (SELECT at, entry_id FROM dead_letters ORDER BY at DESC, entry_id DESC LIMIT 1 OFFSET ?)
"""
_DEAD_LETTERS_KEPT = 1000
_UPSERT_POSITION = "INSERT OR REPLACE INTO stream (only, epoch, after) VALUES (1, ?, ?)"
_ABOUT_DATA = (Kind.CONVERT, Kind.VALIDATE, Kind.SPLIT, Kind.PREPARE)
_DELETE_JOB = tuple(
    f"DELETE FROM {table} WHERE job_id = ?"
    for table in ("events", "metrics", "checkpoints", "artifacts", "tags", "data_steps", "thinned", "jobs")
)
_THIN_POINTS = "DELETE FROM metrics WHERE job_id = :job_id AND step NOT IN (SELECT value FROM json_each(:steps))"
_IS_THINNED_OUT = """
    job_id = :job_id AND type = 'metrics.logged' AND attempt || ':' || json_extract(CAST(body AS TEXT), '$.step')
        NOT IN (SELECT attempt || ':' || step FROM metrics WHERE job_id = :job_id)
"""
_INSERT_THINNED = f"""
    INSERT OR REPLACE INTO thinned (job_id, seq)
    SELECT :job_id, coalesce(max(seq), 0) FROM events WHERE {_IS_THINNED_OUT}
"""
_DELETE_THINNED = f"DELETE FROM events WHERE {_IS_THINNED_OUT}"
_THIN = (_THIN_POINTS, _INSERT_THINNED, _DELETE_THINNED)


class Store(Outbox):
    """The reads of `Queries` and `Outbox`, and every write."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        thread: Executor,
        readers: Sequence[aiosqlite.Connection],
        opened: AsyncExitStack,
    ) -> None:
        super().__init__(readers)
        self._writer = writer
        self._thread = thread
        self._opened = opened
        self._validations: dict[str, ValidateResult | None] = {}

    @classmethod
    async def open(cls, path: Path) -> "Store":
        """The database at a path, made or brought up to the newest migration."""
        path.parent.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as opened:
            thread = ThreadPoolExecutor(1, "store")  # one thread: transactions on one connection must not mix
            opened.callback(thread.shutdown)
            writer = await _in(thread, _open_writer, path)
            opened.push_async_callback(_in, thread, writer.close)
            readers = [await opened.enter_async_context(_reader(path)) for _ in range(_READERS)]
            return cls(writer, thread, readers, opened.pop_all())

    async def close(self) -> None:
        """End the connections and their threads, which would keep the process alive."""
        await self._opened.aclose()

    async def write(self, transaction: Transaction) -> None:
        """Make a transaction true, whole or not at all; it is on the disk when this returns."""
        await _in(self._thread, self._run, lambda: _statements(transaction))
        if any(record.has_ended and record.kind in _ABOUT_DATA for record in transaction.records.values()):
            self._validations = {}

    async def remove(self, job_ids: Iterable[str]) -> None:
        """Forget jobs and everything about them."""
        rows: list[tuple[object, ...]] = [(job_id,) for job_id in job_ids]
        await self.apply([(sql, rows) for sql in _DELETE_JOB])
        self._validations = {}

    async def thin(self, job_id: str, steps: Collection[int]) -> None:
        """Of the points of an ended job keep those of these steps, and the events that say them.

        It is noted, so that nobody who missed what is gone believes to have everything.
        """
        values = {"job_id": job_id, "steps": _encode(sorted(steps)).decode()}
        await self.apply([(sql, [values]) for sql in _THIN])

    async def apply(self, statements: Statements) -> int:
        """Run statements as one transaction; how many rows they changed."""
        return await _in(self._thread, self._run, lambda: statements)

    async def last_validation(self, name: str) -> ValidateResult | None:
        """As in `Queries`, remembered until a job that makes or judges datasets ends or is forgotten."""
        remembered = self._validations  # replaced, never cleared: an answer from before a change goes with the old one
        if name not in remembered:
            remembered[name] = await super().last_validation(name)
        return remembered[name]

    async def checkpoint(self) -> None:
        """Move what the write-ahead log holds into the database file."""
        await _in(self._thread, lambda: self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    def _run(self, statements: Callable[[], Statements]) -> int:
        """A transaction, in the thread as a whole: going there costs more than a statement does."""
        before = self._writer.total_changes
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for sql, rows in statements():
                if rows:
                    self._writer.executemany(sql, rows)
            self._writer.execute("COMMIT")
        except BaseException:
            self._writer.rollback()  # does nothing where SQLite has rolled back by itself
            raise
        return self._writer.total_changes - before


def _statements(transaction: Transaction) -> Statements:
    """Statements and their rows, in the order they must run."""
    records = transaction.records.values()
    letters = transaction.dead_letters
    position = transaction.position
    return [
        (
            _INSERT_EVENT,
            [(e.seq, e.job_id, e.attempt, e.n, e.type, e.at.isoformat(), e.body) for e in transaction.events],
        ),
        (_UPSERT_JOB, [_job_row(record) for record in records]),
        (_INSERT_TAG, list(transaction.tags)),
        *outbox.disable(transaction.disabled),
        outbox.enqueue(after=transaction.events[0].seq - 1 if transaction.events else None),
        (_INSERT_STEP, [(step.dataset, step.kind, step.job.job_id) for record in records for step in steps_of(record)]),
        (_VOID_POINTS, [(v.job_id, v.attempt, v.step) for v in transaction.voided]),
        (_VOID_CHECKPOINTS, [(v.job_id, v.attempt) for v in transaction.voided]),
        (
            _UPSERT_POINT,
            [(p.job_id, p.series, p.step, p.attempt, p.epoch, p.value) for p in transaction.points.values()],
        ),
        (_DELETE_CHECKPOINT, list(transaction.removed_checkpoints)),
        (
            _UPSERT_CHECKPOINT,
            [
                (c.job_id, c.path, c.attempt, c.step, c.bytes, _encode(c.metrics), c.saved_at.isoformat())
                for c in transaction.checkpoints.values()
            ],
        ),
        (
            _UPSERT_ARTIFACT,
            [
                (a.job_id, a.path, a.attempt, a.kind, a.bytes, a.sha256, a.created_at.isoformat())
                for a in transaction.artifacts
            ],
        ),
        (
            _INSERT_DEAD_LETTER,
            [(d.position.epoch, d.position.after, d.at.isoformat(), d.error, d.body) for d in letters],
        ),
        (_TRIM_DEAD_LETTERS, [(_DEAD_LETTERS_KEPT,)] if letters else []),
        (_UPSERT_POSITION, [(position.epoch, position.after)] if position else []),
    ]


def _job_row(record: JobRecord) -> tuple[object, ...]:
    spec = record.spec
    return (
        record.submitted_seq,
        record.job_id,
        record.kind,
        record.status,
        record.label,
        spec.job_id if isinstance(spec, ExportSpec) else None,
        record.duration_s,
        record.best_eval_loss,
        _encode(record),
    )


async def _in(thread: Executor, call: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)


def _open_writer(path: Path) -> sqlite3.Connection:
    """Transactions are begun by hand; the thread that opens it is the only one that uses it."""
    writer = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in (f"busy_timeout = {_BUSY_MS}", "journal_mode = WAL", "synchronous = FULL"):
            writer.execute(f"PRAGMA {pragma}")
        _migrate(writer)
    except BaseException:
        writer.close()
        raise
    return writer


@asynccontextmanager
async def _reader(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    async with aiosqlite.connect(path, isolation_level=None) as reader:
        reader.row_factory = sqlite3.Row
        for pragma in (f"busy_timeout = {_BUSY_MS}", "query_only = ON"):
            await reader.execute_fetchall(f"PRAGMA {pragma}")
        yield reader


def _migrate(writer: sqlite3.Connection) -> None:
    """Run the numbered scripts the database has not seen, each in a transaction of its own."""
    ((version,),) = writer.execute("PRAGMA user_version")
    for script in sorted(MIGRATIONS.glob("[0-9]*.sql")):
        number = int(script.name.partition("_")[0])
        if number > version:
            text = f"BEGIN IMMEDIATE;\n{script.read_text()}\nPRAGMA user_version = {number};\nCOMMIT;"
            try:
                writer.executescript(text)
            except sqlite3.Error:
                writer.rollback()
                raise
