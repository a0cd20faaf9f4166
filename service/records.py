"""What the service knows: frozen structs of what SQLite holds and of what runners said of themselves.

`projection.py` makes them from events, `store.py` keeps them, routes show them.
"""

import time
from datetime import datetime
from typing import Literal

import msgspec

from jobs.errors import FailureReason
from jobs.events import Device, Held, RunnerReported
from jobs.lifecycle import TERMINAL, State, Status
from jobs.results import ConvertResult, JobResult, PrepareResult, SplitResult, ValidateResult
from jobs.specs import ConvertSpec, ExportFormat, JobSpec, Kind, PrepareSpec, SplitSpec, ValidateSpec, kind_of


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all records. Times are UTC; paths are names below the data root."""


Types = frozenset[str] | None
"""Types of events, or all."""


class Interest(msgspec.Struct, frozen=True, kw_only=True):
    """Which events somebody wants: of these jobs or of all, of jobs with this tag, of these types or of all."""

    jobs: frozenset[str] | None = None
    tag: str | None = None
    types: Types = None

    @classmethod
    def of(cls, job_id: str | None = None, types: Types = None) -> "Interest":
        """In one job, or in all."""
        return cls(jobs=None if job_id is None else frozenset((job_id,)), types=types)


class JobRecord(Record, frozen=True, kw_only=True):
    """Everything known of one job.

    `recorded_n` is the last journal line recorded of the present attempt, `recorded_before` that of each earlier one as
    (attempt, line), `last_seq` the job's last event,
    `submitted_seq` its first one and so its place in the order of submission. `waiting_reason` says why a pending
    job waits. `notes` are sentences for the user. `running_since` is set while an attempt
    runs; of a placed job `reserved_bytes` of its device are kept for it, None is the whole device. `preempted_by` is
    the job that a paused one makes room for.
    """

    job_id: str
    spec: JobSpec
    submitted_at: datetime
    updated_at: datetime
    submitted_seq: int
    last_seq: int
    status: Status = Status.PENDING
    attempt: int = 1
    interruptions: int = 0
    recorded_n: int = 0
    recorded_before: tuple[tuple[int, int], ...] = ()
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    pause_requested_at: datetime | None = None
    runner_id: str | None = None
    device: str | None = None
    device_name: str | None = None
    reserved_bytes: int | None = None
    waiting_reason: str | None = None
    running_since: datetime | None = None
    preempted_by: str | None = None
    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    fraction: float | None = None
    epoch: float | None = None
    total_epochs: int | None = None
    eta_s: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    best_eval_loss: float | None = None
    best_eval_accuracy: float | None = None
    peak_memory_bytes: int | None = None
    result: JobResult | None = None
    failure_reason: FailureReason | None = None
    failure_detail: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return kind_of(self.spec)

    @property
    def label(self) -> str | None:
        """The client's own name for the files of a training or an export."""
        config = getattr(self.spec, "config", None)
        label: str | None = getattr(config or self.spec, "output_dir", None)
        return label if self.kind in (Kind.FINETUNE, Kind.EXPORT) else None

    @property
    def tags(self) -> tuple[str, ...]:
        tags: tuple[str, ...] = getattr(self.spec, "tags", ())
        return tags

    @property
    def state(self) -> State:
        """What the table of statuses works on."""
        return State(
            status=self.status,
            attempt=self.attempt,
            interruptions=self.interruptions,
            cancel_requested=self.cancel_requested_at is not None,
            pause_requested=self.pause_requested_at is not None,
        )

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def duration_s(self) -> float | None:
        """From the first start to the end; None until then."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()


class DataStep(Record, frozen=True, kw_only=True):
    """One thing that a completed job did with a dataset. A preparation did up to three, another data job one."""

    job: JobRecord
    spec: ConvertSpec | ValidateSpec | SplitSpec
    result: ConvertResult | ValidateResult | SplitResult

    @property
    def kind(self) -> Kind:
        return kind_of(self.spec)

    @property
    def dataset(self) -> str:
        """The name of the folder it wrote, or of what it checked."""
        return self.spec.data_path if isinstance(self.spec, ValidateSpec) else self.spec.output_dir


def steps_of(job: JobRecord) -> list[DataStep]:
    """What a job did with datasets; nothing before it is completed."""
    spec, result = job.spec, job.result
    if isinstance(spec, PrepareSpec) and isinstance(result, PrepareResult):
        steps = [
            DataStep(job=job, spec=spec.conversion, result=result.convert),
            DataStep(job=job, spec=spec.validation, result=result.validate),
        ]
        return [*steps, DataStep(job=job, spec=spec.division, result=result.split)] if result.split else steps
    if isinstance(spec, ConvertSpec | ValidateSpec | SplitSpec) and isinstance(
        result, ConvertResult | ValidateResult | SplitResult
    ):
        return [DataStep(job=job, spec=spec, result=result)]
    return []


class CheckpointRecord(Record, frozen=True, kw_only=True):
    """A checkpoint that rotation has not removed."""

    job_id: str
    attempt: int
    step: int
    path: str
    bytes: int
    metrics: dict[str, float]
    saved_at: datetime


class ArtifactRecord(Record, frozen=True, kw_only=True):
    """A file or folder a job gave to others."""

    job_id: str
    attempt: int
    kind: str
    path: str
    bytes: int
    sha256: str | None
    created_at: datetime


class ExportRecord(Record, frozen=True, kw_only=True):
    """A completed export job. `job_id` is the training it was made from."""

    export_id: str
    job_id: str
    export_format: ExportFormat
    export_path: str
    archive_path: str
    archive_bytes: int
    archive_sha256: str
    file_size_mb: float
    model_card_path: str | None
    created_at: datetime


class StoredEvent(Record, frozen=True, kw_only=True):
    """An event as it was said, and its cursor. `body` is JSON."""

    seq: int
    job_id: str
    type: str
    body: bytes


class Secret(Record, frozen=True, kw_only=True):
    """What a webhook's messages are signed with. One that was replaced goes on to sign until `valid_until`."""

    text: str
    valid_until: datetime | None = None


class WebhookRecord(Record, frozen=True, kw_only=True):
    """Somebody who wants to be told of events: of these `types`, with a `tag` only of jobs that have it.

    `secrets` begin with the newest. `failing_since` is the begin of a series of failures without a success between
    them, `last_failed_at` its last one. A `disabled_reason` is there when it was the service that disabled it.
    """

    webhook_id: str
    url: str
    secrets: tuple[Secret, ...]
    types: tuple[str, ...]
    created_at: datetime
    tag: str | None = None
    description: str = ""
    format: Literal["standard"] = "standard"
    enabled: bool = True
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    failing_since: datetime | None = None
    last_failed_at: datetime | None = None


DeliveryState = Literal["pending", "delivered", "failed", "held"]
"""Waits for its turn or its next try · was taken · was given up · came while the webhook was disabled."""


class DeliveryRecord(Record, frozen=True, kw_only=True):
    """One event for one webhook, and how the last try went; `seq` and `body` are None for a ping.

    `tries` counts since it was asked for; `next_at` None means as soon as those before it are delivered.
    """

    delivery_id: int
    webhook_id: str
    message_id: str
    type: str
    job_id: str
    state: DeliveryState
    tries: int
    seq: int | None = None
    next_at: datetime | None = None
    attempted_at: datetime | None = None
    status: int | None = None
    latency_ms: int | None = None
    error: str | None = None
    response: str | None = None
    body: bytes | None = None


class RunnerView(Record, frozen=True, kw_only=True):
    """What is known of one runner: its last report, the one before it, and when the last came (monotonic clock)."""

    report: RunnerReported
    heard_at: float
    lease_s: float
    previous: RunnerReported | None = None

    @property
    def runner_id(self) -> str:
        return self.report.runner_id

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.report.devices

    @property
    def alive(self) -> bool:
        return self.is_alive(time.monotonic())

    def is_alive(self, now: float) -> bool:
        """Whether it was heard within its lease; `now` is on the monotonic clock."""
        return now - self.heard_at <= self.lease_s

    def held(self, job_id: str, attempt: int) -> Held | None:
        """What the last report says of an attempt."""
        return _find(self.report, job_id, attempt)

    def held_before(self, job_id: str, attempt: int) -> Held | None:
        """What the report before it said of an attempt."""
        return _find(self.previous, job_id, attempt) if self.previous else None


def _find(report: RunnerReported, job_id: str, attempt: int) -> Held | None:
    return next((held for held in report.held if held.job_id == job_id and held.attempt == attempt), None)
