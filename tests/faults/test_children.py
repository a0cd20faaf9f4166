"""Children with bad manners: nothing of them is left, whoever ends them and whenever."""

import random
import time

import fake_trainer
import pytest
from plan import schedules
from world import PATIENCE, World

from jobs.calls import Json

_ANSWER_S = 5.0  # beyond the grace


_PHASES = ("loading", "7", "saving", "end")
"""Where a cancel finds a job: before its first step, at its seventh, in a save, behind the last step."""
_CASES = [(phase, manner) for phase in _PHASES for manner in ("", "deaf", "escape")]


@pytest.fixture(scope="module")
def roomy(worlds_of):
    """Room for each case at once; a job gets three attempts, none of which is for a runner that reports late."""
    return worlds_of(gpu_slots=len(_CASES), max_attempts=3, lease_s=15.0)


@pytest.fixture(scope="module")
def hasty(worlds_of):
    """Calls a job hanging after seconds."""
    return worlds_of(gpu_slots=8, max_attempts=3, lease_s=15.0, hang_after_s=4.0 * PATIENCE)


@schedules("children")
def test_children_that_leak_hang_or_escape_leave_nothing(hasty, seed) -> None:
    world, dice = hasty.get(), random.Random(seed)
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
    hanging = [job_id for manner, job_id in jobs.items() if manners[manner] == {"cancelled"}]
    world.until(lambda: all(world.step(job_id) >= 4 for job_id in hanging), "a job did not begin")
    world.pass_time(0.3)
    cancel(world, *hanging)
    hasty.check(seed)


@schedules("children")
def test_a_job_that_kills_its_runner_is_given_up_and_the_others_go_on(roomy, seed) -> None:
    world, dice = roomy.get(), random.Random(seed)
    world.runner.pause_s = 0.0
    poison = world.spec(dice.randrange(10**9), steps=20, tags=(f"poison={dice.randrange(0, 19)}",))
    job_id = world.submit_surely(poison, ends={"failed"})
    world.until(lambda: world.status(job_id) == "failed", "the poison job is not given up")
    other = world.submit_surely(world.spec(dice.randrange(10**9), steps=20))
    world.until(lambda: world.status(other) == "completed", "the other job does not go on")
    roomy.check(seed)
    (reason,) = world.rows("SELECT json_extract(record, '$.failure_reason') FROM jobs WHERE job_id = ?", job_id)[0]
    assert reason == "too_many_attempts"


@schedules("cancel")
def test_a_cancel_in_each_phase_leaves_nothing_alive(roomy, seed) -> None:
    """Children that listen, that ignore SIGTERM and that double-fork, in each phase; besides a job that waits, one that
    is paused, and one whose runner died."""
    world, dice = roomy.get(), random.Random(seed)
    jobs = [world.submit_surely(_standing(world, dice, *case), ends={"cancelled"}) for case in _CASES]
    waiting = world.submit_surely(world.spec(dice.randrange(10**9)), ends={"cancelled"})
    world.until(lambda: all(_is_in(world, *both) for both in zip(jobs, _CASES, strict=True)), "a job does not begin")
    assert world.status(waiting) == "pending"
    world.pass_time(dice.uniform(0, 0.3))
    dice.shuffle(jobs)
    took = cancel(world, waiting, *jobs)
    took += cancel(world, _paused(world, dice))
    took += cancel(world, _without_a_runner(world, dice))
    roomy.check(seed, cancels=len(took), in_phases=len(jobs), slowest_s=round(max(took), 2))
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


def cancel(world: World, *jobs: str) -> list[float]:
    """Cancel jobs together; for each the seconds until the service says that it is cancelled. Nothing of it may be
    alive at that moment."""
    began, took = time.monotonic(), dict.fromkeys(jobs, 0.0)

    def all_are_cancelled() -> bool:
        ended = {job_id for job_id in jobs if not took[job_id] and world.status(job_id) == "cancelled"}
        alive = set(world.processes()) if ended else set()
        for job_id in ended:
            took[job_id] = time.monotonic() - began
            left = alive & signatures(world, job_id)
            assert not left, f"{job_id} is cancelled, and {left} are alive"
        return all(took.values())

    for job_id in jobs:
        world.client.cancel(job_id)
    world.until(all_are_cancelled, "a job is not cancelled")
    return list(took.values())


def signatures(world: World, job_id: str) -> set[int]:
    """The processes that there were of a job."""
    files = [folder.folder / fake_trainer.SIGNATURES for folder in world.root.attempts(job_id)]
    return {int(pid) for file in files if file.exists() for pid in file.read_text().split()}


def _standing(world: World, dice: random.Random, phase: str, manner: str) -> Json:
    """A job that goes no further than a phase: politely, or with a manner."""
    tags = (f"{manner}={phase}", f"hang={phase}") if manner else (f"wait={phase}",)
    return world.spec(dice.randrange(10**9), steps=20, tags=tags)


def _is_in(world: World, job_id: str, case: tuple[str, str]) -> bool:
    """Whether it has come there: its last line is the phase or the step before it, and what escapes has escaped."""
    phase, manner = case
    if manner == "escape" and len(signatures(world, job_id)) < 2:
        return False
    if phase in ("loading", "saving"):
        sql = "SELECT json_extract(record, '$.phase') FROM jobs WHERE job_id = ?"
        return world.rows(sql, job_id) == [(phase,)]
    return world.step(job_id) >= (6 if phase == "7" else 20)


def _paused(world: World, dice: random.Random) -> str:
    spec = world.spec(dice.randrange(10**9), steps=500, tags=("step-s=0.02",))
    job_id = world.submit_surely(spec, ends={"cancelled"})
    world.until(lambda: world.step(job_id) >= 2, "a job does not start")
    world.client.pause(job_id)
    world.until(lambda: world.status(job_id) == "paused", "a job is not paused")
    return job_id


def _without_a_runner(world: World, dice: random.Random) -> str:
    spec = world.spec(dice.randrange(10**9), steps=500, tags=("step-s=0.02",))
    job_id = world.submit_surely(spec, ends={"cancelled"})
    world.until(lambda: world.step(job_id) >= 2, "a job does not start")
    world.runner.pause_s = 0.0
    world.kill("runner")
    return job_id
