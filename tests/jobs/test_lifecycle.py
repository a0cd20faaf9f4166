"""The table of statuses: each step, and what no sequence of events can do."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import events, lifecycle
from jobs.errors import FailureReason
from jobs.events import Event
from jobs.lifecycle import LIVE, TERMINAL, State, Status
from jobs.results import GenerateResult

AT = datetime(2026, 1, 1, tzinfo=UTC)
FIELDS: dict[type[Event], dict[str, Any]] = {
    events.CancelRequested: {},
    events.PauseRequested: {},
    events.ResumeRequested: {},
    events.JobPlaced: {"runner_id": "r", "device": "cpu"},
    events.JobStarted: {"device": "cpu"},
    events.JobInterrupted: {"cause": "c"},
    events.JobPaused: {},
    events.JobCompleted: {"result": GenerateResult(answers=())},
    events.JobFailed: {"reason": FailureReason.INTERNAL, "detail": "d"},
    events.JobCancelled: {},
    events.JobWaiting: {"reason": "r"},
    events.MetricsLogged: {"step": 1, "values": {}},
}
KINDS = list(FIELDS)


def event(kind: type[Event], attempt: int = 1) -> Event:
    return kind(job_id="j", attempt=attempt, at=AT, n=5, **FIELDS[kind])


def advanced(state: State, *kinds: type[Event]) -> State:
    """The state after events of its own attempt, each of which must count."""
    for kind in kinds:
        following = lifecycle.advance(state, event(kind, state.attempt))
        assert following is not None, kind
        state = following
    return state


EXPECTED = {
    events.JobPlaced: {"pending": "queued"},
    events.JobStarted: {"queued": "running"},
    events.JobInterrupted: {"queued": "pending", "running": "pending"},
    events.JobPaused: {"running": "paused"},
    events.ResumeRequested: {"paused": "pending"},
    events.JobCompleted: {"queued": "completed", "running": "completed"},
    events.JobFailed: dict.fromkeys(["pending", "queued", "running", "paused"], "failed"),
    events.JobCancelled: dict.fromkeys(["pending", "queued", "running", "paused"], "cancelled"),
}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("status", Status)
def test_a_status_changes_as_the_table_says_and_not_otherwise(kind: type[Event], status: Status) -> None:
    after = lifecycle.advance(State(status=status), event(kind))
    assert (after.status if after else None) == EXPECTED[kind].get(status)


def test_the_table_has_no_other_steps() -> None:
    assert set(EXPECTED) == set(lifecycle.TRANSITIONS)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(EXPECTED), key=lambda kind: kind.__name__))
@pytest.mark.parametrize("status", sorted(LIVE))
def test_other_facts_change_no_status(kind: type[Event], status: Status) -> None:
    after = lifecycle.advance(State(status=status), event(kind))
    assert after is None or after.status is status


def test_a_job_runs_from_pending_to_completed() -> None:
    ended = advanced(State(), events.JobPlaced, events.JobStarted, events.MetricsLogged, events.JobCompleted)
    assert ended == State(status=Status.COMPLETED)


def test_an_interruption_counts_and_a_resume_does_not() -> None:
    running = advanced(State(), events.JobPlaced, events.JobStarted)
    interrupted = advanced(running, events.JobInterrupted)
    assert (interrupted.attempt, interrupted.interruptions) == (2, 1)
    resumed = advanced(running, events.PauseRequested, events.JobPaused, events.ResumeRequested)
    assert (resumed.attempt, resumed.interruptions, resumed.pause_requested) == (2, 0, False)


def test_a_planned_interruption_does_not_count() -> None:
    running = advanced(State(), events.JobPlaced, events.JobStarted)
    planned = events.JobInterrupted(job_id="j", attempt=1, at=AT, cause="c", planned=True)
    assert lifecycle.advance(running, planned) == State(status=Status.PENDING, attempt=2)


def test_an_event_of_another_attempt_changes_nothing() -> None:
    state = State(status=Status.RUNNING, attempt=2)
    for attempt in (1, 3):
        assert lifecycle.advance(state, event(events.JobCompleted, attempt)) is None


def test_a_cancel_is_kept_through_an_interruption() -> None:
    state = advanced(State(), events.JobPlaced, events.JobStarted, events.CancelRequested, events.JobInterrupted)
    assert state.cancel_requested


def test_a_pause_is_kept_through_an_interruption_until_it_is_fulfilled() -> None:
    state = advanced(State(), events.JobPlaced, events.JobStarted, events.PauseRequested, events.JobInterrupted)
    assert state.pause_requested
    state = advanced(state, events.JobPlaced, events.JobStarted)
    assert state.pause_requested
    assert not advanced(state, events.JobPaused).pause_requested
    assert not advanced(state, events.JobCompleted).pause_requested


def test_asking_twice_is_one_cancel() -> None:
    assert lifecycle.advance(State(cancel_requested=True), event(events.CancelRequested)) is None


def test_a_pause_is_only_for_running_jobs_that_nobody_cancels() -> None:
    running = State(status=Status.RUNNING)
    assert advanced(running, events.PauseRequested).pause_requested
    for state in (
        State(),
        State(status=Status.QUEUED),
        State(status=Status.PAUSED),
        State(status=Status.RUNNING, pause_requested=True),
        State(status=Status.RUNNING, cancel_requested=True),
    ):
        assert lifecycle.advance(state, event(events.PauseRequested)) is None


@pytest.mark.parametrize("crossing", [events.JobCompleted, events.JobPaused])
def test_a_completion_or_pause_that_crosses_a_cancel_counts_as_cancelled(crossing: type[Event]) -> None:
    asked = State(status=Status.RUNNING, cancel_requested=True)
    settled = lifecycle.settle(asked, event(crossing))
    assert isinstance(settled, events.JobCancelled)
    assert (settled.job_id, settled.attempt, settled.at, settled.n) == ("j", 1, AT, 5)
    assert advanced(asked, type(settled)).status is Status.CANCELLED


def test_without_a_cancel_an_event_is_recorded_as_it_is() -> None:
    for kind in KINDS:
        said = event(kind)
        assert lifecycle.settle(State(status=Status.RUNNING), said) is said


def test_a_failure_that_crosses_a_cancel_stays_a_failure() -> None:
    said = event(events.JobFailed)
    assert lifecycle.settle(State(status=Status.RUNNING, cancel_requested=True), said) is said


# -- what no sequence of events can do

anything = st.lists(st.builds(event, st.sampled_from(KINDS), st.integers(1, 4)), max_size=40)


@given(anything)
def test_a_terminal_status_never_changes_and_an_attempt_never_falls(said: list[Event]) -> None:
    state = State()
    for one in said:
        following = lifecycle.advance(state, lifecycle.settle(state, one)) or state
        if state.status in TERMINAL:
            assert following is state
        assert 0 <= following.attempt - state.attempt <= 1
        assert following.interruptions >= state.interruptions
        assert following.interruptions < following.attempt
        assert following.cancel_requested or not state.cancel_requested, "a cancel is never forgotten"
        assert not following.pause_requested or following.status in LIVE - {Status.PAUSED}
        state = following


@given(anything)
def test_an_accepted_cancel_never_ends_as_completed(said: list[Event]) -> None:
    state = State()
    for one in said:
        following = lifecycle.advance(state, lifecycle.settle(state, one)) or state
        if state.cancel_requested:
            assert following.status not in (Status.COMPLETED, Status.PAUSED)
        state = following


def test_every_status_is_either_live_or_terminal() -> None:
    assert set(Status) == TERMINAL | LIVE
    assert not TERMINAL & LIVE
