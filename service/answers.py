"""What the routes about jobs answer, made from records. Field names are the contract's; times are UTC.

`experiments` and `downloads` hold the answers about experiments and exports.
"""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from jobs.lifecycle import Status
from jobs.specs import Kind
from service.records import JobRecord, StoredEvent


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


class JobAnswer(JobRecord, frozen=True, kw_only=True, omit_defaults=False):
    """Everything known of a job. `queue_position` counts from 1 among the pending jobs."""

    job_kind: Kind = msgspec.field(name="kind")
    queue_position: int | None = None
    progress_percentage: float = 0.0


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


def job(record: JobRecord, live: Iterable[JobRecord]) -> JobAnswer:
    """The whole record, with its place in the queue."""
    fields: dict[str, Any] = {name: getattr(record, name) for name in JobRecord.__struct_fields__}
    return JobAnswer(
        **fields,
        job_kind=record.kind,
        queue_position=_queue_position(record, live),
        progress_percentage=percentage(record),
    )


def accepted(record: JobRecord, prefix: str) -> Accepted:
    """Of a job that goes on without its caller."""
    address = f"{prefix}/jobs/{record.job_id}"
    message = f"The {record.kind} job {record.job_id} is {record.status}; its address tells how it goes."
    return Accepted(job_id=record.job_id, kind=record.kind, status=record.status, status_url=address, message=message)


def event_page(stored: Iterable[StoredEvent], after: int) -> EventPage:
    events = tuple(NumberedEvent(seq=event.seq, event=msgspec.Raw(event.body)) for event in stored)
    return EventPage(events=events, next=events[-1].seq if events else after)


def _queue_position(record: JobRecord, live: Iterable[JobRecord]) -> int | None:
    if record.status is not Status.PENDING:
        return None
    pending = sorted((other for other in live if other.status is Status.PENDING), key=_turn)
    return next((place for place, other in enumerate(pending, 1) if other.job_id == record.job_id), None)


def _turn(record: JobRecord) -> tuple[int, int]:
    """Higher priority first, then in the order of submission."""
    config = getattr(record.spec, "config", None)
    return -getattr(config, "priority", 0), record.submitted_seq
