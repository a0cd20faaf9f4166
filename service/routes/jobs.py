"""The general door: submit a job of any kind, list, look, read its events and log, steer it, remove it.

The routes of the contract are adapters over the same verbs.
"""

import asyncio
import os
from typing import Annotated, Any, BinaryIO, NamedTuple

from litestar import Request, Response, delete, get, post
from litestar.params import Parameter

from jobs.lifecycle import Status
from jobs.paths import DataRoot
from jobs.specs import JobSpec, Kind
from service import answers, waiting
from service.answers import Accepted, Done, EventPage, JobAnswer, JobPage
from service.cursors import LAST_SEQ, After, EventTypes, types_of
from service.dispatch import Dispatch
from service.problems import documented
from service.recorder import Recorder
from service.records import JobRecord
from service.store import Store

_TAGS = ["jobs"]
_LOG_MAX_BYTES = 2**20  # of one answer


@post("/jobs", status_code=202, tags=_TAGS, responses=documented(400, 404, 409, 422, 501))
async def submit(data: JobSpec, request: Request[Any, Any, Any], dispatch: Dispatch) -> Response[Accepted]:
    """Record a job; `kind` says which. It is durable when this answers."""
    return waiting.accepted(request, await dispatch.submit(data))


@get("/jobs", tags=_TAGS, responses=documented(422))
async def list_jobs(
    store: Store,
    recorder: Recorder,
    kind: Kind | None = None,
    status: Status | None = None,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    before: Annotated[str | None, Parameter(max_length=64, description="Cursor: `before` of the last page.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    kinds = () if kind is None else (kind,)
    records = await store.jobs(kinds=kinds, status=status, limit=limit, before=before)
    positions = answers.queue_positions(recorder.live.values())
    jobs = tuple(answers.job(recorder.live.get(record.job_id, record), positions) for record in records)
    return JobPage(jobs=jobs, before=jobs[-1].job_id if len(jobs) == limit else None)


@get("/jobs/{job_id:str}", tags=_TAGS, responses=documented(404))
async def get_job(job_id: str, recorder: Recorder) -> JobAnswer:
    """Everything known of a job, with its result once it is completed."""
    return _answer(await recorder.known(job_id), recorder)


@get("/jobs/{job_id:str}/events", tags=_TAGS, responses=documented(404, 422))
async def get_events(
    job_id: str,
    recorder: Recorder,
    store: Store,
    after: After = 0,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 500,
    types: EventTypes = None,
) -> EventPage:
    """The job's events behind a cursor, oldest first."""
    record = await recorder.known(job_id)
    stored = await store.events(record.job_id, after=after, limit=limit, types=types_of(types))
    return answers.event_page(stored, after)


@get("/jobs/{job_id:str}/log", tags=_TAGS, responses=documented(404, 422), media_type="text/plain")
async def get_log(
    job_id: str,
    recorder: Recorder,
    root: DataRoot,
    tail_bytes: Annotated[int, Parameter(ge=1, le=_LOG_MAX_BYTES)] = 65536,
    offset: Annotated[
        int | None, Parameter(ge=0, le=LAST_SEQ, description="Instead of the end: what stands behind this byte.")
    ] = None,
) -> Response[bytes]:
    """The end of what the job's newest attempt printed, or up to 1 MiB behind an offset.

    The headers `x-log-attempt` and `x-log-offset` say of which attempt and up to which byte: ask with that offset
    again for what came since. Another attempt's log begins at 0.
    """
    record = await recorder.known(job_id)
    piece = await asyncio.to_thread(_log, root, record.job_id, offset, tail_bytes)
    headers = {"x-log-attempt": str(piece.attempt), "x-log-offset": str(piece.end), "cache-control": "no-store"}
    return Response(piece.text, media_type="text/plain", headers=headers)


@post("/jobs/{job_id:str}/cancel", status_code=200, tags=_TAGS, responses=documented(404))
async def cancel(job_id: str, dispatch: Dispatch, recorder: Recorder) -> JobAnswer:
    """Ask a job to end. One that has ended stays as it is."""
    record, _ = await dispatch.cancel(job_id)
    return _answer(record, recorder)


@post("/jobs/{job_id:str}/pause", status_code=200, tags=_TAGS, responses=documented(400, 404))
async def pause(job_id: str, dispatch: Dispatch, recorder: Recorder) -> JobAnswer:
    """Ask a running training to save its state and give its device back."""
    return _answer(await dispatch.pause(job_id), recorder)


@post("/jobs/{job_id:str}/resume", status_code=200, tags=_TAGS, responses=documented(400, 404))
async def resume(job_id: str, dispatch: Dispatch, recorder: Recorder) -> JobAnswer:
    """Let a paused training go on from its checkpoint."""
    return _answer(await dispatch.resume(job_id), recorder)


@delete("/jobs/{job_id:str}", status_code=200, tags=_TAGS, responses=documented(400, 404))
async def delete_job(job_id: str, dispatch: Dispatch) -> Done:
    """Remove a job and what it wrote. A running one must be cancelled first."""
    await dispatch.delete(job_id)
    return Done(success=True, message=f"Job {job_id} is removed.")


def _answer(record: JobRecord, recorder: Recorder) -> JobAnswer:
    waits = record.status is Status.PENDING  # a running job is asked about often, and has no place in the queue
    return answers.job(record, answers.queue_positions(recorder.live.values() if waits else ()))


class _Piece(NamedTuple):
    """Part of an attempt's output, up to the byte `end`."""

    attempt: int
    end: int
    text: bytes


def _log(root: DataRoot, job_id: str, offset: int | None, tail_bytes: int) -> _Piece:
    """Of the newest attempt that printed anything; empty before there is one."""
    for attempt in root.attempts(job_id):
        if attempt.log.is_file():
            with attempt.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if offset is None:
                    return _Piece(attempt.number, size, _tail(file, size, tail_bytes))
                begin = file.seek(min(offset, size))
                text = file.read(min(_LOG_MAX_BYTES, size - begin))
                return _Piece(attempt.number, begin + len(text), text)
    return _Piece(0, 0, b"")


def _tail(file: BinaryIO, size: int, tail_bytes: int) -> bytes:
    """The last bytes, from the begin of a line."""
    file.seek(max(0, size - tail_bytes))
    tail = file.read(min(tail_bytes, size))
    return tail.partition(b"\n")[2] if size > tail_bytes and b"\n" in tail else tail
