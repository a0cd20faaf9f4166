"""The tree of errors as drawn, and words a person can use."""

import re

import pytest

from jobs import errors
from jobs.errors import FailureReason, JobFailed, TrainingError

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TrainingError)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_stands_in_the_drawing(kind: type[TrainingError]) -> None:
    assert re.search(rf"\b{kind.__name__}\b", errors.__doc__ or ""), f"draw {kind.__name__} at the top of errors.py"


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in (errors.RemoteProblem, errors.NotCompleted)])
def test_without_a_message_the_docstring_is_the_message(kind: type[TrainingError]) -> None:
    assert kind().message.endswith(".")
    assert str(kind("Say this.")) == "Say this."


def test_codes_are_stable_words_and_not_shared() -> None:
    codes = [kind.code for kind in ALL if "code" in vars(kind)]
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)
    assert len(set(codes)) == len(codes)


def test_every_failure_of_a_recipe_has_a_reason_of_the_closed_set() -> None:
    assert all(isinstance(kind.reason, FailureReason) for kind in ALL if issubclass(kind, JobFailed))
