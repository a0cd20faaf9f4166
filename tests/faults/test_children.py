"""Children with bad manners: nothing of them is left, whoever ends them and whenever."""

import random
import time

import pytest
from plan import schedules
from world import PATIENCE, World

_ANSWER_S = 5.0  # beyond the grace


@pytest.fixture(scope="module")
def roomy(worlds_of):
    """Room for eight jobs at once; a job gets three attempts."""
    return worlds_of(gpu_slots=8, max_attempts=3, hang_after_s=4.0 * PATIENCE)


@schedules("children")
def test_children_that_leak_hang_or_escape_leave_nothing(roomy, seed) -> None:
    world, dice = roomy.get(), random.Random(seed)
    at = str(dice.randrange(2, 20))
    manners = {
        f"leak={at}": {"completed"},
        f"escape={at}": {"completed"},
        f"memory={at}": {"failed"},
        f"die={at}": {"failed"},  # at the same step again and again: too many attempts
        "hang=7": {"failed"},  # nobody cancels it: it is noticed, three times
        "hang=saving": {"cancelled"},
        "hang=end": {"cancelled"},
    }
    jobs = {
        manner: world.submit_surely(world.spec(dice.randrange(10**9), steps=20, tags=(manner,)), ends=ends)
        for manner, ends in manners.items()
    }
    for manner, job_id in jobs.items():
        if manners[manner] == {"cancelled"}:
            world.until(lambda job_id=job_id: world.step(job_id) >= 4, 30, f"{manner} did not begin")
            world.pass_time(0.3)
            cancel(world, job_id)
    roomy.check(seed)


@schedules("children")
def test_a_job_that_kills_its_runner_is_given_up_and_the_others_go_on(roomy, seed) -> None:
    world, dice = roomy.get(), random.Random(seed)
    world.runner.pause_s = 0.0
    poison = world.spec(dice.randrange(10**9), steps=20, tags=(f"poison={dice.randrange(0, 19)}",))
    job_id = world.submit_surely(poison, ends={"failed"})
    world.until(lambda: world.status(job_id) == "failed", 60, "the poison job is not given up")
    other = world.submit_surely(world.spec(dice.randrange(10**9), steps=20))
    world.until(lambda: world.status(other) == "completed", 60, "the other job does not go on")
    roomy.check(seed)
    (reason,) = world.rows("SELECT json_extract(record, '$.failure_reason') FROM jobs WHERE job_id = ?", job_id)[0]
    assert reason == "too_many_attempts"


@schedules("cancel")
def test_a_cancel_in_each_phase_leaves_nothing_alive(roomy, seed) -> None:
    """Polite, deaf and escaping children in each phase; a job that waits, one that is paused, one whose runner died."""
    world, dice = roomy.get(), random.Random(seed)
    took = []
    cases = [(phase, manner) for phase in ("loading", "7", "saving", "end") for manner in ("", "deaf", "escape")]
    dice.shuffle(cases)
    for begin in range(0, len(cases), 6):
        jobs = [
            world.submit_surely(
                world.spec(
                    dice.randrange(10**9),
                    steps=20,
                    tags=(*([f"{manner}={phase}"] if manner else []), f"{'hang' if manner else 'wait'}={phase}"),
                ),
                ends={"cancelled"},
            )
            for phase, manner in cases[begin : begin + 6]
        ]
        for job_id in jobs:
            world.until(lambda job_id=job_id: world.status(job_id) == "running", 30, "a job does not start")
        world.pass_time(dice.uniform(0.3, 0.6))
        took += [cancel(world, job_id) for job_id in jobs]
    took.append(_cancel_one_that_waits(world, dice))
    took.append(_cancel_one_that_is_paused(world, dice))
    took.append(_cancel_one_whose_runner_died(world, dice))
    roomy.check(seed, cancels=len(took), slowest_s=round(max(took), 2))
    assert max(took) < (world.settings.stop_grace_s + _ANSWER_S) * PATIENCE


@schedules("cancel")
def test_a_cancel_at_any_moment_and_the_end_it_crosses_agree(roomy, seed) -> None:
    world, dice = roomy.get(), random.Random(seed)
    for _ in range(4):
        spec = world.spec(dice.randrange(10**9), steps=10, save_steps=3)
        job_id = world.submit_surely(spec, ends={"completed", "cancelled"})
        world.pass_time(dice.uniform(0, 0.5))
        world.client.cancel(job_id)
    roomy.check(seed, cancels=4)


def cancel(world: World, job_id: str) -> float:
    """Cancel a job; the seconds until it is cancelled, when nothing of it may be alive."""
    began = time.monotonic()
    world.client.cancel(job_id)
    world.until(lambda: world.status(job_id) == "cancelled", 30, f"{job_id} is not cancelled")
    return time.monotonic() - began


def _cancel_one_that_waits(world: World, dice: random.Random) -> float:
    blocks = [
        world.submit_surely(world.spec(dice.randrange(10**9), tags=("wait=7",)), ends={"cancelled"}) for _ in range(8)
    ]
    waiting = world.submit_surely(world.spec(dice.randrange(10**9)), ends={"cancelled"})
    world.until(lambda: world.status(waiting) == "pending", 30, "a job that finds no room is not pending")
    took = cancel(world, waiting)
    for job_id in blocks:
        cancel(world, job_id)
    return took


def _cancel_one_that_is_paused(world: World, dice: random.Random) -> float:
    spec = world.spec(dice.randrange(10**9), steps=500, tags=("step-s=0.02",))
    job_id = world.submit_surely(spec, ends={"cancelled"})
    world.until(lambda: world.step(job_id) >= 2, 30, "a job does not start")
    world.client.pause(job_id)
    world.until(lambda: world.status(job_id) == "paused", 30, "a job is not paused")
    return cancel(world, job_id)


def _cancel_one_whose_runner_died(world: World, dice: random.Random) -> float:
    spec = world.spec(dice.randrange(10**9), steps=500, tags=("step-s=0.02",))
    job_id = world.submit_surely(spec, ends={"cancelled"})
    world.until(lambda: world.step(job_id) >= 2, 30, "a job does not start")
    world.runner.pause_s = 0.0
    world.kill("runner")
    return cancel(world, job_id)
