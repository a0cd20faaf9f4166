"""The statuses of a job and what changes them: one pure table, used by the recorder and by every test.

     pending ─ placed ─▶ queued ─ job.started ─▶ running ─┬─ job.completed ─▶ completed
        ▲                   │                     │       ├─ job.failed ────▶ failed
        ├─ job.interrupted (attempt + 1) ─────────┘       ├─ job.cancelled ─▶ cancelled
        └─ job.resume_requested (attempt + 1) ◀─ paused ◀─┘ job.paused

pending, queued and paused may go straight to cancelled or failed. A terminal status never changes. An event of
an older attempt changes nothing.
"""

from enum import StrEnum

import msgspec

from jobs import events
from jobs.events import Event


class Status(StrEnum):
    """Where a job stands."""

    PENDING = "pending"  # waiting for a place; the reason is on the record
    QUEUED = "queued"  # placed at a runner, not yet started
    RUNNING = "running"  # a child executes it
    PAUSED = "paused"  # its state is saved, it holds no device
    COMPLETED = "completed"  # ended with a result
    FAILED = "failed"  # ended with a reason
    CANCELLED = "cancelled"  # ended because somebody wanted it to


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
LIVE = frozenset(Status) - TERMINAL

_P, _Q, _R, _Z = Status.PENDING, Status.QUEUED, Status.RUNNING, Status.PAUSED

TRANSITIONS: dict[type[Event], dict[Status, Status]] = {
    events.JobPlaced: {_P: _Q},
    events.JobStarted: {_Q: _R},
    events.JobInterrupted: {_Q: _P, _R: _P},
    events.JobPaused: {_R: _Z},
    events.ResumeRequested: {_Z: _P},
    events.JobCompleted: {_Q: Status.COMPLETED, _R: Status.COMPLETED},
    events.JobFailed: dict.fromkeys((_P, _Q, _R, _Z), Status.FAILED),
    events.JobCancelled: dict.fromkeys((_P, _Q, _R, _Z), Status.CANCELLED),
}
_PAUSE_HOLDS = frozenset({_P, _Q, _R})  # an accepted pause is a promise, also to the attempt after an interruption
_NEXT_ATTEMPT = (events.JobInterrupted, events.ResumeRequested)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the table works on. `interruptions` counts against `max_attempts`; resuming and planned
    interruptions do not."""

    status: Status = Status.PENDING
    attempt: int = 1
    interruptions: int = 0
    cancel_requested: bool = False
    pause_requested: bool = False


def advance(state: State, event: Event) -> State | None:
    """The state after an event; None when the event must be ignored (old attempt, ended job, no such step)."""
    if state.status in TERMINAL or event.attempt != state.attempt:
        return None
    if isinstance(event, events.CancelRequested):
        return None if state.cancel_requested else msgspec.structs.replace(state, cancel_requested=True)
    if isinstance(event, events.PauseRequested):
        may_pause = state.status is Status.RUNNING and not state.pause_requested and not state.cancel_requested
        return msgspec.structs.replace(state, pause_requested=True) if may_pause else None
    steps = TRANSITIONS.get(type(event))
    if steps is None:
        return state  # a fact that changes no status
    if state.status not in steps:
        return None
    following = steps[state.status]
    return State(
        status=following,
        attempt=state.attempt + isinstance(event, _NEXT_ATTEMPT),
        interruptions=state.interruptions + (isinstance(event, events.JobInterrupted) and not event.planned),
        cancel_requested=state.cancel_requested,
        pause_requested=state.pause_requested and following in _PAUSE_HOLDS,
    )


def settle(state: State, event: Event) -> Event:
    """The event as it is to be recorded: an accepted cancel is a promise, so a completion that crossed it on
    its way counts as cancelled; so does a pause, which would otherwise leave the job waiting for ever."""
    if state.cancel_requested and isinstance(event, events.JobCompleted | events.JobPaused):
        return events.JobCancelled(job_id=event.job_id, attempt=event.attempt, at=event.at, n=event.n)
    return event
