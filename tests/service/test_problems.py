"""The table from errors to statuses is complete, and no answer shows what is inside."""

from jobs import errors
from jobs.errors import FailureReason, TrainingError
from service import problems

NEVER_ANSWERED = {errors.Misconfigured, errors.NotCompleted, errors.RemoteProblem, errors.Unreachable}


def _all(kind: type[TrainingError]) -> set[type[TrainingError]]:
    return {kind}.union(*map(_all, kind.__subclasses__()))


def test_every_refusal_has_its_own_status() -> None:
    missing = {kind for kind in _all(errors.Refused) if kind not in problems.STATUS}
    assert not missing, f"add {missing} to service/problems.py"
    assert all(400 <= problems.STATUS[kind] < 500 for kind in _all(errors.Refused) - {errors.NotSupported})


def test_every_error_a_request_can_meet_has_a_status() -> None:
    for kind in _all(TrainingError) - NEVER_ANSWERED:
        assert 400 <= problems.status_of(kind()) < 600


def test_every_reason_of_a_failed_job_has_a_status() -> None:
    assert set(problems.REASON_STATUS) == set(FailureReason)
    for reason in FailureReason:
        problem = problems.of_failure(reason, "what to do", "/api/data/convert")
        assert (problem.code, problem.detail, problem.message) == (reason.value, "what to do", "what to do")


def test_errors_that_need_no_entry_have_the_status_of_their_parent() -> None:
    assert problems.status_of(errors.NoRunner()) == 503
    assert problems.status_of(errors.DiskFull()) == 507
