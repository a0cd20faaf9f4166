"""Facts that happened to a job: frozen tagged structs. `docs/events.md` is generated from this file (`make docs`).

The child encodes an event once; the same bytes go through journal, Redis, SQLite and socket.

Classes:

* A: state, checkpoints, artifacts, samples, notes: never dropped or merged
* B: `metrics.logged`: all stored, may be merged per frame on the wire
* C: `job.progressed`: neither journalled nor stored, last value wins, at most four a second

Adding an event: a struct here, a line in `lifecycle.py` if it changes the status, a branch in the store if it
fills a table.
"""

from datetime import datetime
from typing import Literal

import msgspec

from jobs.errors import FailureReason
from jobs.results import JobResult
from jobs.specs import JobSpec, Slot


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The envelope. `at` is UTC. `n` is the line in the attempt's journal, dense from 1; events that the
    service itself states have none."""

    job_id: str
    attempt: int
    at: datetime
    n: int | None = None


# -- stated by the service


class JobSubmitted(Event, frozen=True, kw_only=True, tag="job.submitted"):
    """A job was accepted; its spec never changes. `warnings` are sentences for whoever asked for it."""

    spec: JobSpec
    warnings: tuple[str, ...] = ()


class JobPlaced(Event, frozen=True, kw_only=True, tag="job.placed"):
    """The service chose a runner and a device, and keeps so much of its memory for the job; null is all of it. Where a
    job gets several, `device` names them all, as `cuda:0,cuda:1`, and so much is kept on each."""

    runner_id: str
    device: str
    reserved_bytes: int | None = None


class JobWaiting(Event, frozen=True, kw_only=True, tag="job.waiting"):
    """Why the job cannot be placed yet, as a sentence."""

    reason: str


class CancelRequested(Event, frozen=True, kw_only=True, tag="job.cancel_requested"):
    """Somebody wants the job to end."""


class PauseRequested(Event, frozen=True, kw_only=True, tag="job.pause_requested"):
    """Somebody wants the job to save its state and give its device back. `preempted_by` is the job of higher priority
    that needs the device; the paused one goes on by itself later."""

    preempted_by: str | None = None


class ResumeRequested(Event, frozen=True, kw_only=True, tag="job.resume_requested"):
    """A paused job is to go on; the next attempt continues from its checkpoint."""


class WebhookDisabled(Event, frozen=True, kw_only=True, tag="webhook.disabled"):
    """Nothing is sent to a webhook any more until somebody enables it; `reason` says why. It is about no job, so
    `job_id` and `attempt` are left out."""

    webhook_id: str
    reason: str
    job_id: str = ""
    attempt: int = 0


# -- said by a runner


class JobInterrupted(Event, frozen=True, kw_only=True, tag="job.interrupted"):
    """The attempt ended without a result: its process or its runner died. Stated by the service too, when a
    runner's lease ends. `planned`: the runner ended it on purpose, which does not count against `max_attempts`."""

    cause: str
    planned: bool = False


class JobStarted(Event, frozen=True, kw_only=True, tag="job.started"):
    """A child runs. `device_name` is the hardware's own name."""

    device: str
    device_name: str = ""
    runner_id: str = ""


class PhaseEntered(Event, frozen=True, kw_only=True, tag="job.phase_entered"):
    """The job's work entered a new phase: loading, training, evaluating, saving …"""

    phase: str


class JobNoted(Event, frozen=True, kw_only=True, tag="job.noted"):
    """Something the user should know: a setting that was changed, a model that stands for another."""

    message: str
    code: str = "note"


class JobProgressed(Event, frozen=True, kw_only=True, tag="job.progressed"):
    """How far the job is; class C. `fraction` is 0..1 of the whole job, `eta_s` seconds to its end."""

    step: int
    total_steps: int
    fraction: float
    epoch: float | None = None
    total_epochs: int | None = None
    eta_s: float | None = None
    phase: str | None = None


class MetricsLogged(Event, frozen=True, kw_only=True, tag="metrics.logged"):
    """Values of one step, by series name. A value that is no finite number is null, and named in `not_finite`."""

    step: int
    values: dict[str, float | None]
    epoch: float | None = None
    total_steps: int | None = None
    total_epochs: int | None = None
    not_finite: dict[str, Literal["nan", "inf", "-inf"]] = {}


class TrainingResumed(Event, frozen=True, kw_only=True, tag="training.resumed"):
    """The attempt goes on from the checkpoint of `step`, or from the beginning (0): what earlier attempts logged
    beyond that step is void, and is logged again. Their checkpoints are void too: those that it took over are said
    anew."""

    step: int


class SamplePredicted(Event, frozen=True, kw_only=True, tag="sample.predicted"):
    """What the model answers to one fixed row at this step, so that people see it learn."""

    step: int
    row_id: str
    prompt: str
    expected: str
    predicted: str
    image: str | None = None
    correct: bool | None = None


class CheckpointSaved(Event, frozen=True, kw_only=True, tag="checkpoint.saved"):
    """A checkpoint is complete on disk, its manifest written. `path` is a name below the data root."""

    step: int
    path: str
    bytes: int
    metrics: dict[str, float] = {}


class CheckpointRemoved(Event, frozen=True, kw_only=True, tag="checkpoint.removed"):
    """Rotation removed a checkpoint."""

    step: int
    path: str


class ArtifactCreated(Event, frozen=True, kw_only=True, tag="artifact.created"):
    """A file or folder others may use: a dataset, a report, an export's archive."""

    kind: str
    path: str
    bytes: int
    sha256: str | None = None


class JobPaused(Event, frozen=True, kw_only=True, tag="job.paused"):
    """The state is saved and the device is free."""

    step: int | None = None


class JobCompleted(Event, frozen=True, kw_only=True, tag="job.completed"):
    """The job ended with its result."""

    result: JobResult


class JobFailed(Event, frozen=True, kw_only=True, tag="job.failed"):
    """The job ended without a result. `detail` says what to do next."""

    reason: FailureReason
    detail: str


class JobCancelled(Event, frozen=True, kw_only=True, tag="job.cancelled"):
    """The job ended because somebody wanted it to; nothing of it is alive."""


JobEvent = (
    JobSubmitted
    | JobPlaced
    | JobWaiting
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | JobInterrupted
    | JobStarted
    | PhaseEntered
    | JobNoted
    | JobProgressed
    | MetricsLogged
    | TrainingResumed
    | SamplePredicted
    | CheckpointSaved
    | CheckpointRemoved
    | ArtifactCreated
    | JobPaused
    | JobCompleted
    | JobFailed
    | JobCancelled
)

LoggedEvent = JobEvent | WebhookDisabled
"""Whatever has a `seq`, and `job.progressed`, which has none."""

ATTEMPT_ENDED = (JobInterrupted, JobPaused, JobCompleted, JobFailed, JobCancelled)
"""The last line of every journal is one of these."""


# -- what a runner says of itself: on the same stream, never stored


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a runner: `device_id` is `cpu` or `cuda:<index>`; `slots` is how many jobs of each sort it takes at
    most; memory is None where nothing can measure it, and the configured budget where there is one. `capabilities`
    are words such as `bf16` and `four_bit`."""

    device_id: str
    name: str
    slots: dict[Slot, int]
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    capabilities: tuple[str, ...] = ()

    @property
    def is_cuda(self) -> bool:
        return self.device_id.startswith("cuda")


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt a runner holds. `last_n` is the last journal line; a finished one is held until the service
    has all its lines and says cancel. `memory_bytes` is what its processes hold of the device now, where that can be
    measured; of several devices the least of them."""

    job_id: str
    attempt: int
    state: Literal["queued", "running", "finished"]
    last_n: int
    device: str = ""
    slot: Slot | None = None
    memory_bytes: int | None = None


class RunnerReported(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="runner.reported"):
    """The state of a runner, every two seconds and after each change. `boot` is new at each start of it."""

    runner_id: str
    boot: str
    at: datetime
    devices: tuple[Device, ...]
    held: tuple[Held, ...]
    version: str = ""
    stopping: bool = False


StreamMessage = JobEvent | RunnerReported

encode = msgspec.json.Encoder().encode
"""Any event or report as JSON bytes."""

decode_event = msgspec.json.Decoder(LoggedEvent).decode
"""Raises msgspec.MsgspecError (or UnicodeDecodeError) for anything that is no event."""

decode_message = msgspec.json.Decoder(StreamMessage).decode
"""Like `decode_event`, for what stands in the event stream."""


def type_of(event: Event) -> str:
    """The event's name on the wire, such as `job.started`."""
    return str(event.__struct_config__.tag)
