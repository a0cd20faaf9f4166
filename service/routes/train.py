"""Trainings as existing clients know them: start, status, cancel, list; beside them pause, resume and the queue."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter

from jobs.errors import WrongState
from jobs.lifecycle import Status
from jobs.presets import PRESETS, Preset
from jobs.results import PlanResult, PreviewResult
from jobs.settings import Settings
from jobs.specs import FinetuneSpec, Kind, PlanSpec, PreviewSpec
from service import answers, planning, waiting
from service.answers import Accepted, Answer, Cancelled, Progress, Started
from service.dispatch import Dispatch
from service.planning import PlanAnswer
from service.problems import documented
from service.reconcile import Queued, Reconciler
from service.recorder import Recorder
from service.records import JobRecord
from service.store import Store

Limit = Annotated[int, Parameter(ge=1, le=1000)]

_TAGS = ["train"]
PLANNED = documented(404, 409, 422, 424, 503) | {
    202: ResponseSpec(Accepted, description="The plan is still being made", generate_examples=False)
}
_PREVIEWED = documented(404, 422, 503) | {
    202: ResponseSpec(Accepted, description="The job runs on; its address tells how it goes", generate_examples=False)
}


class PresetList(Answer, frozen=True, kw_only=True):
    """A preset's `config` has only the settings it sets; the others keep their defaults."""

    presets: tuple[Preset, ...]


class QueuedAnswer(Answer, frozen=True, kw_only=True):
    """A waiting job. `position` counts from 1 over jobs of all kinds. `needs_…_bytes` is the memory it needs on such a
    device, null where that is not known: then it waits for a device for itself. `predicted_start_at` supposes that
    nothing else is submitted; null where nobody can tell."""

    job_id: str
    kind: Kind
    position: int
    priority: int
    reason: str | None
    submitted_at: datetime
    needs_cuda_bytes: int | None
    needs_cpu_bytes: int | None
    predicted_start_at: datetime | None


class QueueList(Answer, frozen=True, kw_only=True):
    queue: tuple[QueuedAnswer, ...]
    total: int


@get("/train/presets", tags=_TAGS)
async def list_presets() -> PresetList:
    """Named settings to begin a training with."""
    return PresetList(presets=PRESETS)


@post("/train/start", status_code=200, tags=_TAGS, responses=documented(400, 404, 422))
async def start(data: FinetuneSpec, dispatch: Dispatch, store: Store) -> Started:
    """Record a fine-tuning job; it runs as soon as there is a place."""
    record = await dispatch.submit(data)
    message = f"Training {record.job_id} is {record.status}; follow it at /api/train/{record.job_id}/status."
    minutes = await planning.duration_at_start(data, store)
    return Started(
        success=True,
        job_id=record.job_id,
        message=message,
        estimated_duration_minutes=minutes,
        warnings=record.notes,
    )


@post("/train/plan", status_code=200, tags=_TAGS, responses=PLANNED)
async def plan(
    data: PlanSpec,
    request: Request[Any, Any, Any],
    dispatch: Dispatch,
    settings: Settings,
    store: Store,
    recorder: Recorder,
    reconciler: Reconciler,
) -> Response[PlanAnswer]:
    """What a training would take, with the body of its start: memory on each device, duration, warnings.

    Nothing is started. With `probe: true` two steps run on the longest rows and are measured.
    """
    response = await waiting.run(request, dispatch, data, settings, as_record=True)
    if isinstance(response.content, JobRecord):
        response.content = await planning.answer(response.content, store, recorder, reconciler.names)
    return response


@get("/train/plan/{job_id:str}", tags=_TAGS, responses=documented(400, 404))
async def planned(job_id: str, store: Store, recorder: Recorder, reconciler: Reconciler) -> PlanAnswer:
    """A plan that was asked for earlier, for the devices and with the experience of now."""
    record = await recorder.known(job_id)
    if not isinstance(record.result, PlanResult):
        raise WrongState(f"Job {job_id} is no plan that is completed: it is a {record.kind} job and {record.status}.")
    return await planning.answer(record, store, recorder, reconciler.names)


@post("/train/preview", status_code=200, tags=_TAGS, responses=_PREVIEWED)
async def preview(
    data: FinetuneSpec, request: Request[Any, Any, Any], dispatch: Dispatch, settings: Settings
) -> Response[PreviewResult]:
    """What the same body sent to start would train on: the text of the first and the longest rows, piece by piece."""
    return await waiting.run(request, dispatch, PreviewSpec(config=data.config), settings)


@get("/train/{job_id:str}/status", tags=_TAGS, responses=documented(404))
async def status(job_id: str, recorder: Recorder) -> Progress:
    """How a job goes."""
    return answers.progress(await recorder.known(job_id))


@post("/train/{job_id:str}/cancel", status_code=200, tags=_TAGS, responses=documented(404))
async def cancel(job_id: str, dispatch: Dispatch) -> Cancelled:
    """Ask a job to end. `success` is false where it had ended before."""
    record, is_accepted = await dispatch.cancel(job_id)
    message = (
        f"Job {job_id} is being cancelled." if is_accepted else f"Job {job_id} had already {_ended(record.status)}."
    )
    return Cancelled(success=is_accepted, job_id=job_id, status=record.status, message=message)


@post("/train/{job_id:str}/pause", status_code=200, tags=_TAGS, responses=documented(400, 404))
async def pause(job_id: str, dispatch: Dispatch) -> Progress:
    """Ask a running training to save its state at its next step and give its device back."""
    return answers.progress(await dispatch.pause(job_id))


@post("/train/{job_id:str}/resume", status_code=200, tags=_TAGS, responses=documented(400, 404))
async def resume(job_id: str, dispatch: Dispatch) -> Progress:
    """Let a paused training queue for a device again; it goes on from its checkpoint."""
    return answers.progress(await dispatch.resume(job_id))


@get("/train/queue", tags=_TAGS)
async def queue(reconciler: Reconciler) -> QueueList:
    """The jobs that wait for a place, next first: why each waits and when it is likely to start."""
    found = await reconciler.queue()
    now = datetime.now(UTC)
    return QueueList(queue=tuple(_queued(each, now) for each in found), total=len(found))


@get("/train/jobs", tags=_TAGS, responses=documented(422))
async def list_jobs(
    store: Store,
    recorder: Recorder,
    status: Annotated[Status | None, Parameter(query="status")] = None,
    limit: Limit = 100,
) -> list[Progress]:
    """Trainings, newest first."""
    records = await store.jobs(kinds=(Kind.FINETUNE,), status=status, limit=limit)
    return [answers.progress(recorder.live.get(record.job_id, record)) for record in records]


def _queued(found: Queued, now: datetime) -> QueuedAnswer:
    starts_at = None if found.starts_in_s is None else now + timedelta(seconds=found.starts_in_s)
    return QueuedAnswer(
        job_id=found.job.job_id,
        kind=found.job.kind,
        position=found.position,
        priority=found.priority,
        reason=found.reason,
        submitted_at=found.job.submitted_at,
        needs_cuda_bytes=found.needs.cuda,
        needs_cpu_bytes=found.needs.cpu,
        predicted_start_at=starts_at,
    )


def _ended(status: Status) -> str:
    return "been cancelled" if status is Status.CANCELLED else status.value
