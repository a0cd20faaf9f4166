"""Whether work with a model still shows signs of life. The supervisor feels it; nothing in the child helps it to lie:
the signs come from the loop that does the work, not from a thread beside it.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable

import msgspec

_TIMES_A_STEP = 20.0
_STEPS_REMEMBERED = 101


class _Progress(msgspec.Struct):
    step: int


_decode = msgspec.json.Decoder(_Progress).decode


class Pulse:
    """It counts from the first progress on: how long loading takes nobody knows.

    A silence of `least_s`, or of twenty median steps where that is longer, is a hang.
    """

    def __init__(self, least_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.look_every_s = min(5.0, least_s / 4)
        self._least_s = least_s
        self._clock = clock
        self._beat_at: float | None = None
        self._looked_at = clock()
        self._step: tuple[int, float] | None = None
        self._steps_s: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def beat(self) -> None:
        """The journal grew."""
        if self._beat_at is not None:
            self._beat_at = self._clock()

    def progress(self, line: bytes) -> None:
        """A `job.progressed`."""
        now, step = self._clock(), _decode(line).step
        self._beat_at = now
        if self._step is None or self._step[0] != step:
            if self._step is not None:
                self._steps_s.append(now - self._step[1])
            self._step = (step, now)

    @property
    def limit_s(self) -> float:
        return max(self._least_s, _TIMES_A_STEP * statistics.median(self._steps_s or [0.0]))

    def has_stopped(self) -> bool:
        """Call it every `look_every_s`. A caller that stood still itself could not hear, and waits anew."""
        now = self._clock()
        stood_still, self._looked_at = now - self._looked_at > 3 * self.look_every_s, now
        if stood_still:
            self.beat()
        return self._beat_at is not None and now - self._beat_at > self.limit_s
