"""What an event makes of a job's record: pure functions, used by the recorder alone.

`begin` makes the record, `follow` carries it on, `progress` takes what is never stored.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from jobs import events
from jobs.events import Event
from jobs.lifecycle import State, Status
from jobs.results import FinetuneResult
from service.records import JobRecord

_NOTES_KEPT = 50
_ACCURACY = "eval_accuracy"  # the series of `metrics.logged` that best_eval_accuracy is taken from
_MEMORY = "memory_mb"  # the series of the most memory that was in use so far, in MiB

Changes = dict[str, object]


def begin(event: events.JobSubmitted, seq: int) -> JobRecord:
    """The record of a job that was just accepted."""
    return JobRecord(
        job_id=event.job_id,
        spec=event.spec,
        submitted_at=event.at,
        updated_at=event.at,
        submitted_seq=seq,
        last_seq=seq,
        attempt=event.attempt,
        notes=event.warnings,
    )


def follow(record: JobRecord, event: Event, state: State, seq: int) -> JobRecord:
    """The record after an event that brought the job into this state."""
    changes: Changes = {
        "status": state.status,
        "attempt": state.attempt,
        "interruptions": state.interruptions,
        "updated_at": event.at,
        "last_seq": seq,
        **_recorded(record, event, state),
        "pause_requested_at": record.pause_requested_at if state.pause_requested else None,
    }
    specific = _BY_TYPE.get(type(event))
    if specific is not None:
        changes |= specific(record, event)
    return _replaced(record, changes)


def progress(record: JobRecord, event: events.JobProgressed) -> JobRecord:
    """The record with the newest progress; unchanged when it is of an attempt that does not run."""
    if event.attempt != record.attempt or record.status is not Status.RUNNING:
        return record
    changes: Changes = {"step": event.step, "total_steps": event.total_steps}
    changes |= {"fraction": _furthest(record, event.fraction), "updated_at": event.at, "eta_s": event.eta_s}
    return _replaced(record, changes | _said(event, "epoch", "total_epochs", "phase"))


def _recorded(record: JobRecord, event: Event, state: State) -> Changes:
    n = record.recorded_n if event.n is None else event.n
    if state.attempt == record.attempt:
        return {"recorded_n": n}
    return {"recorded_n": 0, "recorded_before": (*record.recorded_before, (record.attempt, n))}


def _said(event: Event, *fields: str) -> Changes:
    """The fields that the event does not leave open."""
    return {field: value for field in fields if (value := getattr(event, field)) is not None}


def _replaced(record: JobRecord, changes: Mapping[str, Any]) -> JobRecord:
    return msgspec.structs.replace(record, **changes)


def _placed(_: JobRecord, event: events.JobPlaced) -> Changes:
    return {
        "runner_id": event.runner_id,
        "device": event.device,
        "reserved_bytes": event.reserved_bytes,
        "waiting_reason": None,
    }


def _waiting(_: JobRecord, event: events.JobWaiting) -> Changes:
    return {"waiting_reason": event.reason}


def _cancel_requested(_: JobRecord, event: events.CancelRequested) -> Changes:
    return {"cancel_requested_at": event.at}


def _pause_requested(_: JobRecord, event: events.PauseRequested) -> Changes:
    return {"pause_requested_at": event.at, "preempted_by": event.preempted_by}


def _resume_requested(_: JobRecord, __: events.ResumeRequested) -> Changes:
    return {"preempted_by": None}


def _interrupted(_: JobRecord, event: events.JobInterrupted) -> Changes:
    return {**_NO_PLACE, "waiting_reason": event.cause}


def _started(record: JobRecord, event: events.JobStarted) -> Changes:
    changes: Changes = {"started_at": record.started_at or event.at, "running_since": event.at}
    changes |= {"device": event.device, "waiting_reason": None}
    changes |= {field: value for field, value in _said(event, "device_name", "runner_id").items() if value}
    return changes


def _phase_entered(_: JobRecord, event: events.PhaseEntered) -> Changes:
    return {"phase": event.phase}


def _noted(record: JobRecord, event: events.JobNoted) -> Changes:
    if event.message in record.notes:
        return {}
    return {"notes": (*record.notes, event.message)[-_NOTES_KEPT:]}


def _metrics_logged(record: JobRecord, event: events.MetricsLogged) -> Changes:
    changes: Changes = {"step": event.step, **_said(event, "epoch", "total_steps", "total_epochs")}
    total_steps = event.total_steps or record.total_steps
    if total_steps:
        changes["fraction"] = _furthest(record, event.step / total_steps)
    values = {name: value for name, value in event.values.items() if value is not None}
    changes |= {name: values[name] for name in ("train_loss", "eval_loss", "learning_rate") if name in values}
    best = {
        "best_eval_loss": _best(min, record.best_eval_loss, values.get("eval_loss")),
        "best_eval_accuracy": _best(max, record.best_eval_accuracy, values.get(_ACCURACY)),
        "peak_memory_bytes": _best(max, record.peak_memory_bytes, _bytes(values.get(_MEMORY))),
    }
    return changes | best


def _training_resumed(_: JobRecord, event: events.TrainingResumed) -> Changes:
    return {"step": event.step}


def _paused(_: JobRecord, __: events.JobPaused) -> Changes:
    return dict(_NO_PLACE)


def _completed(record: JobRecord, event: events.JobCompleted) -> Changes:
    changes = {**_ended_at(event.at), "result": event.result, "fraction": 1.0}
    result = event.result
    if isinstance(result, FinetuneResult):
        known = {
            "step": result.steps,
            "train_loss": result.final_train_loss,
            "best_eval_loss": result.best_eval_loss,
            "best_eval_accuracy": result.best_eval_accuracy,
            "peak_memory_bytes": result.peak_memory_bytes,
            "device_name": record.device_name or result.device_name or None,
        }
        changes |= {name: value for name, value in known.items() if value is not None}
    return changes


def _failed(_: JobRecord, event: events.JobFailed) -> Changes:
    return {**_ended_at(event.at), "failure_reason": event.reason, "failure_detail": event.detail}


def _cancelled(_: JobRecord, event: events.JobCancelled) -> Changes:
    return _ended_at(event.at)


def _ended_at(at: datetime) -> Changes:
    return {"completed_at": at, "phase": None, "eta_s": None, "waiting_reason": None}


def _furthest(record: JobRecord, fraction: float) -> float:
    """An attempt that goes on from a checkpoint repeats steps; what people see never goes backwards."""
    return min(1.0, max(record.fraction or 0.0, fraction))


def _best(choose: Callable[[Any, Any], Any], old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return new if old is None else old
    best: float = choose(old, new)
    return best


def _bytes(mebibytes: float | None) -> int | None:
    return None if mebibytes is None else int(mebibytes * 2**20)


_NO_PLACE: Changes = {
    "runner_id": None,
    "device": None,
    "reserved_bytes": None,
    "running_since": None,
    "phase": None,
    "eta_s": None,
}

_BY_TYPE: dict[type[Event], Callable[[JobRecord, Any], Changes]] = {
    events.JobPlaced: _placed,
    events.JobWaiting: _waiting,
    events.CancelRequested: _cancel_requested,
    events.PauseRequested: _pause_requested,
    events.ResumeRequested: _resume_requested,
    events.JobInterrupted: _interrupted,
    events.JobStarted: _started,
    events.PhaseEntered: _phase_entered,
    events.JobNoted: _noted,
    events.MetricsLogged: _metrics_logged,
    events.TrainingResumed: _training_resumed,
    events.JobPaused: _paused,
    events.JobCompleted: _completed,
    events.JobFailed: _failed,
    events.JobCancelled: _cancelled,
}
