"""When silence counts as a hang."""

import pytest

from gpu_runner.pulse import Pulse


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def look(pulse: Pulse, clock: Clock, seconds: float) -> bool:
    """Look as often as one should, for so long; whether it was found still."""
    for _ in range(int(seconds / pulse.look_every_s)):
        clock.now += pulse.look_every_s
        if pulse.has_stopped():
            return True
    return False


def step(pulse: Pulse, number: int) -> None:
    pulse.progress(b'{"type":"job.progressed","step":%d}' % number)


def test_loading_may_take_as_long_as_it_likes(clock: Clock) -> None:
    pulse = Pulse(600, clock)
    pulse.beat()
    assert not look(pulse, clock, 10_000)


def test_silence_after_the_first_step_is_a_hang_and_any_line_a_sign_of_life(clock: Clock) -> None:
    pulse = Pulse(600, clock)
    step(pulse, 1)
    assert not look(pulse, clock, 595)
    pulse.beat()
    assert not look(pulse, clock, 595)
    assert look(pulse, clock, 10)


def test_slow_steps_get_twenty_times_their_median(clock: Clock) -> None:
    pulse = Pulse(600, clock)
    for number in range(10):
        step(pulse, number)
        assert not look(pulse, clock, 60)
    assert pulse.limit_s == pytest.approx(1200)
    assert not look(pulse, clock, 1130)
    assert look(pulse, clock, 20)


def test_a_runner_that_stood_still_itself_waits_anew(clock: Clock) -> None:
    pulse = Pulse(600, clock)
    step(pulse, 1)
    clock.now += 3600
    assert not pulse.has_stopped()
    assert look(pulse, clock, 610)
