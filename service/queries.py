"""What is read from SQLite: one method a question, on connections that can only read.

`store.Store` is these reads and the one writer; routes, recorder and dispatch ask it.
"""

import itertools
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import aiosqlite
import msgspec

from jobs.lifecycle import LIVE, TERMINAL, Status
from jobs.results import ExportResult, ValidateResult
from jobs.specs import ExportFormat, Kind
from service.records import (
    ArtifactRecord,
    CheckpointRecord,
    DataStep,
    ExportRecord,
    Interest,
    JobRecord,
    StoredEvent,
    Types,
    steps_of,
)
from service.steps import Lineage, Steps, folder_of, names_of, newest_check, source_of
from service.transaction import Position

SortBy = Literal["created_at", "duration_seconds", "best_eval_loss"]
Series = dict[str, list[tuple[int, float | None, float | None]]]
"""(step, epoch, value) by name of the series, in the order of steps; a value of None is no finite number."""

_ORDER: dict[SortBy, str] = {
    "created_at": "submitted_seq DESC",
    "duration_seconds": "duration_s IS NULL, duration_s DESC, submitted_seq DESC",
    "best_eval_loss": "best_eval_loss IS NULL, best_eval_loss, submitted_seq DESC",
}

_CONDITIONS = {
    "after": "seq > :after",
    "before": "submitted_seq < (SELECT submitted_seq FROM jobs WHERE job_id = :before)",
    "job_id": "job_id = :job_id",
    "job_ids": "job_id IN (SELECT value FROM json_each(:job_ids))",
    "kinds": "kind IN (SELECT value FROM json_each(:kinds))",
    "label": "label = :label",
    "parent_id": "parent_id = :parent_id",
    "status": "status = :status",
    "tag": "job_id IN (SELECT job_id FROM tags WHERE tag = :tag)",
    "types": "type IN (SELECT value FROM json_each(:types))",
    "up_to": "seq <= :up_to",
}

_decode_job = msgspec.json.Decoder(JobRecord).decode
_decode_metrics = msgspec.json.Decoder(dict[str, float]).decode


class Queries:
    """Reads, taking turns on several connections. Every read sees whole transactions only."""

    def __init__(self, readers: Sequence[aiosqlite.Connection]) -> None:
        self._readers = readers
        self._turns = itertools.cycle(readers)

    async def is_healthy(self) -> bool:
        """Whether the database answers."""
        try:
            await self._rows("SELECT 1 FROM jobs LIMIT 1")
        except (sqlite3.Error, ValueError):  # ValueError is aiosqlite's word for a closed connection
            return False
        return True

    # -- jobs

    async def job(self, job_id: str) -> JobRecord | None:
        jobs = await self._jobs("SELECT record FROM jobs WHERE job_id = :job_id", {"job_id": job_id})
        return jobs[0] if jobs else None

    async def jobs(
        self,
        kinds: Collection[Kind] = (),
        status: Status | None = None,
        label: str | None = None,
        tag: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[JobRecord]:
        """Newest submitted first; `before` is the id of the last job of the page before."""
        listed = _listed(kinds) if kinds else None
        where, values = _where(kinds=listed, status=status, label=label, tag=tag, before=before)
        sql = f"SELECT record FROM jobs {where} ORDER BY submitted_seq DESC LIMIT :limit"
        return await self._jobs(sql, {**values, "limit": limit})

    async def live_jobs(self) -> list[JobRecord]:
        """What has not ended, oldest first."""
        sql = "SELECT record FROM jobs WHERE status IN (SELECT value FROM json_each(:statuses)) ORDER BY submitted_seq"
        return await self._jobs(sql, {"statuses": _listed(LIVE)})

    async def experiments(
        self, status: Status | None = None, tag: str | None = None, limit: int = 100, sort_by: SortBy = "created_at"
    ) -> list[JobRecord]:
        """Trainings: newest or longest first, or lowest loss first; what has no such value comes last."""
        where, values = _where(kinds=_listed([Kind.FINETUNE]), status=status, tag=tag)
        sql = f"SELECT record FROM jobs {where} ORDER BY {_ORDER[sort_by]} LIMIT :limit"
        return await self._jobs(sql, {**values, "limit": limit})

    async def newest_by_label(self, label: str) -> str | None:
        """The training that was submitted last under a label."""
        jobs = await self.jobs(kinds=(Kind.FINETUNE,), label=label, limit=1)
        return jobs[0].job_id if jobs else None

    async def children(self, job_id: str) -> list[JobRecord]:
        """The export jobs of a training, whatever became of them."""
        return await self._jobs("SELECT record FROM jobs WHERE parent_id = :job_id", {"job_id": job_id})

    # -- datasets

    async def maker_of(self, name: str) -> DataStep | None:
        """The step that made a dataset folder what it is."""
        sql = """
            SELECT name, step, record FROM jobs JOIN data_steps USING (job_id)
            WHERE name = :name AND step IN ('convert', 'split') ORDER BY submitted_seq DESC LIMIT 1
        """
        steps = await self._steps(sql, {"name": name})
        return steps[0] if steps else None

    async def newest_steps(self) -> Steps:
        """Of every dataset folder the step that made it what it is, and of all that was checked the newest check."""
        sql = """
            SELECT name, step, record FROM jobs JOIN (
                SELECT name, step, max(submitted_seq) AS newest FROM data_steps JOIN jobs USING (job_id)
                GROUP BY name, step = 'validate'
            ) ON submitted_seq = newest ORDER BY newest DESC, step DESC
        """
        return Steps(await self._steps(sql, {}))

    async def lineage(self, name: str) -> Lineage:
        """A file stands for its folder."""
        found: dict[str, DataStep | None] = {}
        source: str | None = name
        while source is not None and source not in found:
            found[source] = maker = await self.maker_of(folder_of(source))
            source = source_of(maker)
        return list(found.items())

    async def last_validation(self, name: str) -> ValidateResult | None:
        """What the newest validation of a dataset since it was made found.

        A file stands for its folder, and a split for the dataset it was cut from, unless it was validated itself.
        """
        lineage = await self.lineage(name)
        names = [each for ancestor, _ in lineage for each in names_of(ancestor)]
        return newest_check(lineage, {each: step for each in names for step in await self.validations(each, limit=1)})

    async def validations(self, name: str, maker: DataStep | None = None, limit: int = 50) -> list[DataStep]:
        """What was checked under a name since its dataset was made, newest first; a maker may check it itself."""
        sql = """
            SELECT name, step, record FROM jobs JOIN data_steps USING (job_id)
            WHERE name = :name AND step = 'validate' AND submitted_seq >= :since
            ORDER BY submitted_seq DESC LIMIT :limit
        """
        since = maker.job.submitted_seq if maker else 0
        return await self._steps(sql, {"name": name, "since": since, "limit": limit})

    async def _steps(self, sql: str, values: Mapping[str, Any]) -> list[DataStep]:
        """The one step of each job that a row of (name, step, record) means."""
        of_job: dict[bytes, list[DataStep]] = {}  # a preparation is there up to three times
        found = []
        for name, kind, record in await self._rows(sql, values):
            if record not in of_job:
                of_job[record] = steps_of(_decode_job(record))
            found += [step for step in of_job[record] if (step.dataset, step.kind) == (name, kind)]
        return found

    # -- what jobs left

    async def metrics(self, job_id: str) -> Series:
        sql = "SELECT series, step, epoch, value FROM metrics WHERE job_id = :job_id ORDER BY series, step"
        series: Series = {}
        for name, step, epoch, value in await self._rows(sql, {"job_id": job_id}):
            series.setdefault(name, []).append((step, epoch, value))
        return series

    async def checkpoints(self, job_id: str) -> list[CheckpointRecord]:
        """Those that rotation has left, in the order of steps."""
        sql = """
            SELECT job_id, attempt, step, path, bytes, metrics, saved_at
            FROM checkpoints WHERE job_id = :job_id ORDER BY step, attempt
        """
        rows = await self._rows(sql, {"job_id": job_id})
        return [msgspec.convert({**row, "metrics": _decode_metrics(row["metrics"])}, CheckpointRecord) for row in rows]

    async def artifacts(self, job_id: str) -> list[ArtifactRecord]:
        sql = """
            SELECT job_id, attempt, kind, path, bytes, sha256, created_at
            FROM artifacts WHERE job_id = :job_id ORDER BY created_at, path
        """
        return [msgspec.convert(dict(row), ArtifactRecord) for row in await self._rows(sql, {"job_id": job_id})]

    async def export(self, export_id: str) -> ExportRecord | None:
        job = await self.job(export_id)
        return _as_export(job) if job else None

    async def exports(self, job_id: str | None = None) -> list[ExportRecord]:
        """Newest first, of one training or of all."""
        where, values = _where(kinds=_listed([Kind.EXPORT]), status=Status.COMPLETED, parent_id=job_id)
        sql = f"SELECT record FROM jobs {where} ORDER BY submitted_seq DESC"
        found = [_as_export(job) for job in await self._jobs(sql, values)]
        return sorted((export for export in found if export), key=lambda export: export.created_at, reverse=True)

    # -- the log

    async def events(
        self, job_id: str | None = None, after: int = 0, limit: int = 500, types: Types = None
    ) -> list[StoredEvent]:
        """Events behind a cursor in the order of `seq`, of one job or of all, of these types or of all."""
        return await self.events_of(Interest.of(job_id, types), after=after, limit=limit)

    async def events_of(
        self, interest: Interest, after: int = 0, up_to: int | None = None, limit: int = -1
    ) -> list[StoredEvent]:
        """Events with after < seq ≤ up_to in the order of `seq`."""
        where, values = _where(after=after, up_to=up_to, **_wanted(interest))
        sql = f"SELECT seq, job_id, type, body FROM events {where} ORDER BY seq LIMIT :limit"
        rows = await self._rows(sql, {**values, "limit": limit})
        return [StoredEvent(seq=seq, job_id=job, type=name, body=body) for seq, job, name, body in rows]

    async def event_count(self, job_id: str | None = None, after: int = 0) -> int:
        """How many events stand behind a cursor."""
        return await self.count_of(Interest.of(job_id), after)

    async def count_of(self, interest: Interest, after: int, limit: int = -1) -> int:
        """How many events stand behind a cursor, counted up to a limit."""
        where, values = _where(after=after, **_wanted(interest))
        sql = f"SELECT count(*) FROM (SELECT 1 FROM events {where} LIMIT :limit)"
        rows = await self._rows(sql, {**values, "limit": limit})
        return int(rows[0][0])

    async def has_thinned(self, interest: Interest, after: int) -> bool:
        """Whether points behind a cursor are gone since they were thinned out."""
        if interest.types is not None and "metrics.logged" not in interest.types:
            return False
        where, values = _where(after=after, **_wanted(Interest(jobs=interest.jobs, tag=interest.tag)))
        return bool(await self._rows(f"SELECT 1 FROM thinned {where} LIMIT 1", values))

    async def to_thin(self, ended_before: datetime, limit: int) -> list[str]:
        """Jobs that ended before then and whose points were not thinned out yet, the oldest first."""
        sql = """
            SELECT job_id FROM jobs LEFT JOIN thinned USING (job_id)
            WHERE thinned.job_id IS NULL AND kind = :kind AND status IN (SELECT value FROM json_each(:statuses))
                AND julianday(json_extract(CAST(record AS TEXT), '$.completed_at')) < julianday(:ended_before)
            ORDER BY submitted_seq LIMIT :limit
        """
        values = {"kind": Kind.FINETUNE, "statuses": _listed(TERMINAL), "ended_before": ended_before.isoformat()}
        return [job_id for (job_id,) in await self._rows(sql, {**values, "limit": limit})]

    async def head_seq(self) -> int:
        """The last seq ever given, also when its event was deleted."""
        rows = await self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0][0]) if rows else 0

    async def position(self) -> Position | None:
        """How far the event stream was recorded; None before the first time."""
        rows = await self._rows("SELECT epoch, after FROM stream")
        return Position(*rows[0]) if rows else None

    async def dead_letters(self) -> list[tuple[str, str, bytes]]:
        """(entry id, error, bytes) of every stream entry nobody could read."""
        rows = await self._rows("SELECT entry_id, error, body FROM dead_letters ORDER BY at, entry_id")
        return [(entry_id, error, body) for entry_id, error, body in rows]

    async def _jobs(self, sql: str, values: Mapping[str, Any]) -> list[JobRecord]:
        return [_decode_job(row[0]) for row in await self._rows(sql, values)]

    async def _rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[sqlite3.Row]:
        return list(await next(self._turns).execute_fetchall(sql, dict(values or {})))


def _where(**wanted: object) -> tuple[str, dict[str, object]]:
    """A WHERE clause of the conditions whose value is given, and the values by name."""
    given = {name: value for name, value in wanted.items() if value is not None}
    return ("WHERE " + " AND ".join(_CONDITIONS[name] for name in given) if given else ""), given


def _wanted(interest: Interest) -> dict[str, object]:
    """An interest as values of `_where`. One job is asked for by itself: its index then gives the order, too."""
    jobs = interest.jobs
    types = None if interest.types is None else _listed(sorted(interest.types))
    if jobs is not None and len(jobs) == 1:
        return {"job_id": next(iter(jobs)), "tag": interest.tag, "types": types}
    return {"job_ids": None if jobs is None else _listed(sorted(jobs)), "tag": interest.tag, "types": types}


def _listed(words: Iterable[str]) -> str:
    """The words as a JSON list."""
    return msgspec.json.encode([str(word) for word in words]).decode()


def _as_export(job: JobRecord) -> ExportRecord | None:
    result = job.result
    if not isinstance(result, ExportResult) or job.completed_at is None:
        return None
    return ExportRecord(
        export_id=job.job_id,
        job_id=result.job_id,
        export_format=ExportFormat(result.export_format),
        export_path=result.export_path,
        archive_path=result.archive_path,
        archive_bytes=result.archive_bytes,
        archive_sha256=result.archive_sha256,
        file_size_mb=result.file_size_mb,
        model_card_path=result.model_card_path,
        created_at=job.completed_at,
    )
