"""Waiting for what happens elsewhere: in another thread, or in a service."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(is_so: Callable[[], T], within_s: float = 20.0) -> T:
    """What it answers once that is true. Raises AssertionError, with the last answer, when it never is."""
    deadline = time.monotonic() + within_s
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"it never was so: {answer!r}"
        time.sleep(0.01)
    return answer
