"""How long a client waits before it tries again: ever longer, at random, and not for ever.

Used by `connection`, `subscription`, `client` and `async_client`. Source of the randomness: full jitter, so that many
clients of one service that comes back do not all knock at once.
"""

import random
import time
from http import HTTPStatus

from jobs.errors import RemoteProblem, TrainingError, Unreachable

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
_PASSING = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}


class Backoff:
    """The pauses of one conversation. `limit_s` is how long it may go without any contact."""

    def __init__(self, limit_s: float, *, in_contact: bool = False) -> None:
        self._limit_s = limit_s
        self._tries = 0
        self._last_contact = time.monotonic() if in_contact else None

    def greeted(self) -> None:
        """Somebody is there."""
        self._last_contact = time.monotonic()

    def contact(self) -> None:
        """Something useful was heard: what fails from now on is another failure, and begins with short pauses."""
        self._tries = 0
        self.greeted()

    def pause_after(self, error: TrainingError, at_least_s: float = 0.0) -> float:
        """Seconds to wait before the next try.

        Raises:
            TrainingError: `error` itself, when another try is of no use: it would be refused again, there never was
                any contact, or there was none for too long.
        """
        silent_s = float("inf") if self._last_contact is None else time.monotonic() - self._last_contact
        if not _is_passing(error) or silent_s > self._limit_s:
            raise error
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._tries)
        self._tries = min(self._tries + 1, 16)
        return max(random.uniform(0, longest), at_least_s)  # what a service asks for is at random already


def _is_passing(error: TrainingError) -> bool:
    """Whether it is the network or a service on its way up, rather than an answer."""
    return isinstance(error, Unreachable) or (isinstance(error, RemoteProblem) and error.status in _PASSING)
