"""Events over the wire: named as facts, equal on the other side, and small."""

import re
import typing
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from jobs import events
from jobs.errors import FailureReason
from jobs.events import Event, JobEvent
from jobs.results import GenerateResult
from jobs.specs import Slot, ValidateSpec

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FIELDS: dict[type[Event], dict[str, Any]] = {
    events.JobSubmitted: {"spec": ValidateSpec(data_path="a"), "warnings": ("w",)},
    events.JobPlaced: {"runner_id": "r", "device": "cpu"},
    events.JobWaiting: {"reason": "no runner"},
    events.CancelRequested: {},
    events.PauseRequested: {},
    events.ResumeRequested: {},
    events.JobInterrupted: {"cause": "the child was killed"},
    events.JobStarted: {"device": "cpu", "device_name": "CPU", "runner_id": "r"},
    events.PhaseEntered: {"phase": "training"},
    events.JobNoted: {"message": "fp32 is used.", "code": "setting_changed"},
    events.JobProgressed: {"step": 1, "total_steps": 2, "fraction": 0.5, "eta_s": 1.5},
    events.MetricsLogged: {"step": 1, "values": {"train_loss": None, "lr": 0.1}, "not_finite": {"train_loss": "nan"}},
    events.TrainingResumed: {"step": 4},
    events.SamplePredicted: {"step": 1, "row_id": "x", "prompt": "?", "expected": "red", "predicted": "blue"},
    events.CheckpointSaved: {"step": 1, "path": "jobs/j/c", "bytes": 10, "metrics": {"eval_loss": 0.5}},
    events.CheckpointRemoved: {"step": 1, "path": "jobs/j/c"},
    events.ArtifactCreated: {"kind": "export", "path": "exports/e/a.zip", "bytes": 10, "sha256": "0" * 64},
    events.JobPaused: {"step": 3},
    events.JobCompleted: {"result": GenerateResult(answers=())},
    events.JobFailed: {"reason": FailureReason.DISK_FULL, "detail": "Free some space."},
    events.JobCancelled: {},
}
KINDS = typing.get_args(JobEvent)


def example(kind: type[Event], **envelope: Any) -> Any:
    return kind(**({"job_id": "j", "attempt": 2, "at": AT, "n": 7} | envelope), **FIELDS[kind])


def test_every_event_has_an_example() -> None:
    assert set(FIELDS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_survives_the_wire(kind: type[Event]) -> None:
    sent = example(kind)
    assert events.decode_event(events.encode(sent)) == sent
    assert events.decode_message(events.encode(sent)) == sent


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not events.JobWaiting]
)  # waiting is a state of affairs
def test_an_event_is_named_for_a_thing_and_what_happened_to_it(kind: type[Event]) -> None:
    assert re.fullmatch(r"[a-z]+\.([a-z]+_)?[a-z]+ed", str(kind.__struct_config__.tag))


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_cannot_be_changed(kind: type[Event]) -> None:
    with pytest.raises(AttributeError):
        example(kind).attempt = 3


def test_names_are_unique() -> None:
    names = [events.type_of(example(kind)) for kind in KINDS]
    assert len(set(names)) == len(names)


def test_an_event_of_the_service_has_no_line_number_on_the_wire() -> None:
    sent = example(events.JobPlaced, n=None)
    assert msgspec.json.decode(events.encode(sent)) == {
        "type": "job.placed",
        "job_id": "j",
        "attempt": 2,
        "at": "2026-01-02T03:04:05Z",
        "runner_id": "r",
        "device": "cpu",
    }


def test_fields_of_a_later_version_are_passed_over() -> None:
    line = events.encode(example(events.JobPaused))[:-1] + b',"colour":"red"}'
    assert events.decode_event(line) == example(events.JobPaused)


def test_a_report_survives_the_wire_and_is_no_event() -> None:
    report = events.RunnerReported(
        runner_id="r",
        boot="b",
        at=AT,
        devices=(events.Device(device_id="cuda:0", name="GPU", slots={Slot.GPU: 1}, memory_free_bytes=1),),
        held=(events.Held(job_id="j", attempt=1, state="running", last_n=4),),
        stopping=True,
    )
    assert events.decode_message(events.encode(report)) == report
    assert report.devices[0].is_cuda
    with pytest.raises(msgspec.ValidationError):
        events.decode_event(events.encode(report))


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"{}", b'{"type":"job.exploded"}', b"\xff\xfe", b"[" * 200_000])
def test_what_is_no_event_raises_what_callers_catch(line: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError, RecursionError)):
        events.decode_event(line)


def test_an_attempt_ends_with_one_of_five() -> None:
    assert {kind for kind in KINDS if issubclass(kind, events.ATTEMPT_ENDED)} == {
        events.JobInterrupted,
        events.JobPaused,
        events.JobCompleted,
        events.JobFailed,
        events.JobCancelled,
    }
