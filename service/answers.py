"""What the routes about jobs answer, made from records. Field names are the contract's; times are UTC.

`experiments` and `downloads` hold the answers about experiments and exports.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from jobs.errors import FailureReason
from jobs.lifecycle import Status
from jobs.results import JobResult
from jobs.specs import JobSpec, Kind
from service.occupancy import priority_of, since_s
from service.records import JobRecord, StoredEvent
from service.rooms import turn_of


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers: every field is always there."""


class Done(Answer, frozen=True, kw_only=True):
    """Something was done; `message` says what."""

    success: bool
    message: str


class Uploaded(Done, frozen=True, kw_only=True):
    """`file_path` names the archive in later requests."""

    file_path: str
    filename: str
    file_size_mb: float


class Started(Done, frozen=True, kw_only=True):
    """A training was recorded; `warnings` are sentences about its settings."""

    job_id: str
    estimated_duration_minutes: float | None = None
    warnings: tuple[str, ...] = ()


class Cancelled(Done, frozen=True, kw_only=True):
    """`success` is False where the job had ended before."""

    job_id: str
    status: Status


class Accepted(Answer, frozen=True, kw_only=True):
    """The job is recorded and runs without anybody waiting; `status_url` tells how it goes."""

    job_id: str
    kind: Kind
    status: Status
    status_url: str
    message: str


class Progress(Answer, frozen=True, kw_only=True):
    """How a job goes. `progress_percentage` is 0..100 and never null; `waiting_reason` says why a job is pending."""

    job_id: str
    status: Status
    current_epoch: int | None
    total_epochs: int | None
    current_step: int | None
    total_steps: int | None
    progress_percentage: float
    eta_seconds: float | None
    train_loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None
    error_message: str | None
    attempt: int
    phase: str | None
    waiting_reason: str | None
    notes: tuple[str, ...]


class JobAnswer(Answer, frozen=True, kw_only=True):
    """Everything known of a job.

    `queue_position` counts from 1 among the pending jobs; `waiting_reason` says why one waits. Of a placed job
    `reserved_bytes` of its device are kept for it; `preempted_by` is the job it makes room for. `last_seq` is the
    cursor behind the job's last event. `notes` are sentences for the user.
    """

    job_id: str
    kind: Kind
    spec: JobSpec
    status: Status
    attempt: int
    interruptions: int
    queue_position: int | None
    waiting_reason: str | None
    submitted_at: datetime
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    pause_requested_at: datetime | None
    runner_id: str | None
    device: str | None
    device_name: str | None
    reserved_bytes: int | None
    running_since: datetime | None
    preempted_by: str | None
    phase: str | None
    step: int | None
    total_steps: int | None
    fraction: float | None
    epoch: float | None
    total_epochs: int | None
    eta_s: float | None
    progress_percentage: float
    train_loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    best_eval_loss: float | None
    best_eval_accuracy: float | None
    peak_memory_bytes: int | None
    result: JobResult | None
    failure_reason: FailureReason | None
    failure_detail: str | None
    notes: tuple[str, ...]
    last_seq: int


class JobPage(Answer, frozen=True, kw_only=True):
    """Newest first; `before` is the cursor of the next page, null on the last one."""

    jobs: tuple[JobAnswer, ...]
    before: str | None


class NumberedEvent(Answer, frozen=True, kw_only=True):
    seq: int
    event: msgspec.Raw


class EventPage(Answer, frozen=True, kw_only=True):
    """Oldest first; `next` is the cursor to ask with again: what lies behind it is new."""

    events: tuple[NumberedEvent, ...]
    next: int


def progress(record: JobRecord) -> Progress:
    """The contract's view of a job."""
    total = record.total_steps
    return Progress(
        job_id=record.job_id,
        status=record.status,
        current_epoch=None if record.epoch is None else math.ceil(record.epoch),
        total_epochs=record.total_epochs,
        current_step=total if record.status is Status.COMPLETED and total is not None else record.step,
        total_steps=total,
        progress_percentage=percentage(record),
        eta_seconds=None if record.has_ended else record.eta_s,
        train_loss=record.train_loss,
        eval_loss=record.eval_loss,
        learning_rate=record.learning_rate,
        started_at=record.started_at,
        updated_at=record.updated_at,
        completed_at=record.completed_at,
        error_message=record.failure_detail,
        attempt=record.attempt,
        phase=record.phase,
        waiting_reason=record.waiting_reason,
        notes=record.notes,
    )


def percentage(record: JobRecord) -> float:
    """0..100; 100 exactly when the job is completed."""
    if record.status is Status.COMPLETED:
        return 100.0
    return round(min(99.9, 100 * (record.fraction or 0.0)), 1)


def job(record: JobRecord, positions: Mapping[str, int]) -> JobAnswer:
    """The whole record, with its place in the queue; `positions` come from `queue_positions`."""
    further = {"queue_position": positions.get(record.job_id), "progress_percentage": percentage(record)}
    names = (name for name in JobAnswer.__struct_fields__ if name not in further)
    fields: dict[str, Any] = {name: getattr(record, name) for name in names}
    return JobAnswer(**fields | further)


def queue_positions(live: Iterable[JobRecord]) -> dict[str, int]:
    """The turn of each pending job, from 1."""
    pending = sorted((record for record in live if record.status is Status.PENDING), key=_turn)
    return {record.job_id: place for place, record in enumerate(pending, 1)}


def accepted(record: JobRecord, prefix: str) -> Accepted:
    """Of a job that goes on without its caller."""
    address = f"{prefix}/jobs/{record.job_id}"
    message = f"The {record.kind} job {record.job_id} is {record.status}; its address tells how it goes."
    return Accepted(job_id=record.job_id, kind=record.kind, status=record.status, status_url=address, message=message)


def event_page(stored: Iterable[StoredEvent], after: int) -> EventPage:
    events = tuple(NumberedEvent(seq=event.seq, event=msgspec.Raw(event.body)) for event in stored)
    return EventPage(events=events, next=events[-1].seq if events else after)


def _turn(record: JobRecord) -> tuple[float, int]:
    """The order in which jobs are placed."""
    return turn_of(priority_of(record), since_s(record)), record.submitted_seq
