"""A synchronous route over a job: submit, then wait for its end, the clock, the client or the service to go.

Used by the data and export routes. `Prefer: respond-async` and `Prefer: wait=N` steer the wait (RFC 7240).
"""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any

from litestar import Request, Response

from jobs.lifecycle import Status
from jobs.settings import Settings
from jobs.specs import JobSpec
from service import answers, problems
from service.dispatch import Dispatch
from service.records import JobRecord

AnyRequest = Request[Any, Any, Any]

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})")
_CLIENT_GONE = 499  # nobody reads it; it only shows in a log


async def run(
    request: AnyRequest, dispatch: Dispatch, spec: JobSpec, settings: Settings, *, as_record: bool = False
) -> Response[Any]:
    """The job's result, or `as_record` its record; its failure as a problem; or 202 with its address when it takes
    longer than the wait.

    A client that goes away leaves the job running.
    """
    wait_s = _preferred_wait(request.headers.get("prefer", ""), settings.sync_wait_s)
    if wait_s == 0:
        return accepted(request, await dispatch.submit(spec))
    record = await _unless_gone(request, dispatch.run_and_wait(spec, wait_s))
    if record is None:
        return Response(None, status_code=_CLIENT_GONE)
    if not record.has_ended:
        return accepted(request, record)
    if as_record and record.status is Status.COMPLETED:
        return Response(record, status_code=200)
    return _outcome(request, record)


def accepted(request: AnyRequest, record: JobRecord) -> Response[Any]:
    """202: the job is recorded and runs; its address is in `Location` and in the body."""
    body = answers.accepted(record, prefix_of(request))
    return Response(body, status_code=202, headers={"location": body.status_url})


def prefix_of(request: AnyRequest) -> str:
    """The prefix this client uses, for addresses it is given."""
    return "/api/training" if request.url.path.startswith("/api/training/") else "/api"


def _outcome(request: AnyRequest, record: JobRecord) -> Response[Any]:
    if record.status is Status.COMPLETED:
        return Response(record.result, status_code=200)
    path = request.url.path
    if record.failure_reason is not None:
        detail = record.failure_detail or f"The {record.kind} job failed."
        return problems.answer(problems.of_failure(record.failure_reason, detail, path))
    return problems.answer(problems.problem_of(409, "job_cancelled", f"The {record.kind} job was cancelled.", path))


def _preferred_wait(prefer: str, default_s: float) -> float:
    if "respond-async" in prefer.lower():
        return 0.0
    match = _WAIT.search(prefer.lower())
    return min(float(match[1]), default_s) if match else default_s


async def _unless_gone(request: AnyRequest, work: Coroutine[Any, Any, JobRecord]) -> JobRecord | None:
    """What the work gives; None when the client left first."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: AnyRequest) -> None:
    """Returns when the client leaves; the body has been read before, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
