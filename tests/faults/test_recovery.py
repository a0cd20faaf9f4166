"""How long a lost runner goes unnoticed, with the lease that is the default: measured from the kill."""

import random
import time
from datetime import datetime

import pytest
from plan import IS_LONG, schedules
from world import PATIENCE

from jobs.settings import Settings

NOTICED_S = 20.0
NEXT_STEP_S = 30.0
RUNNERS, LOST = (12, 8) if IS_LONG else (4, 2)
"""Many runners are lost at the same moment: each is a case of its own, and their leases run out side by side."""


@pytest.fixture(scope="module")
def many_runners(worlds_of):
    as_it_is = Settings()
    return worlds_of(
        runners=RUNNERS,
        gpu_slots=3,
        lease_s=as_it_is.lease_s,
        report_every_s=as_it_is.report_every_s,
        stop_grace_s=as_it_is.stop_grace_s,
    )


@schedules("recovery")
def test_lost_runners_are_noticed_and_their_jobs_go_on_elsewhere(many_runners, seed) -> None:
    world, dice = many_runners.get(), random.Random(seed)
    assert world.settings.lease_s == 15
    for member in world.runners:
        member.held = False
    world.until(lambda: len(_present(world)) == RUNNERS, "not all runners report")
    specs = [world.spec(dice.randrange(10**9), steps=150, save_steps=10, tags=("step-s=0.1",)) for _ in range(RUNNERS)]
    jobs = [world.submit_surely(spec) for spec in specs]
    world.until(lambda: all(world.step(job_id) >= 4 for job_id in jobs), "jobs do not start")
    world.pass_time(dice.uniform(0, 2))
    placed = dict(world.rows("SELECT job_id, json_extract(record, '$.runner_id') FROM jobs WHERE status = 'running'"))
    busy = sorted(set(placed.values()))
    lost = dice.sample(busy, k=min(LOST, len(busy) - 1))
    killed_at = time.time()
    for member in world.runners:
        if member.name in lost:
            member.held = True
            member.signal(9)
            world.kills.append((time.time(), "runner"))
    concerned = [job_id for job_id in jobs if placed.get(job_id) in lost]
    assert len(concerned) >= len(lost)
    world.until(lambda: all(_goes_on(world, job_id) for job_id in concerned), "a job does not go on")
    noticed = [_first(world, job_id, "job.interrupted", 1) - killed_at for job_id in concerned]
    # Attempt 2 where it was not given to another lost runner, whose lease had not quite ended.
    stepped = [_first(world, job_id, "metrics.logged", 2) - killed_at for job_id in concerned]
    many_runners.check(
        seed,
        runner_kills=len(lost),
        noticed_s=[round(value, 2) for value in noticed],
        next_step_s=[round(value, 2) for value in stepped],
    )
    assert max(noticed) <= NOTICED_S * PATIENCE
    assert max(stepped) <= NEXT_STEP_S * PATIENCE


def _present(world) -> list[str]:
    return [view["runner_id"] for view in world.client.get("/api/runners") if view["alive"]]


def _goes_on(world, job_id: str) -> bool:
    sql = "SELECT 1 FROM events WHERE job_id = ? AND attempt > 1 AND type = 'metrics.logged' LIMIT 1"
    return bool(world.rows(sql, job_id))


def _first(world, job_id: str, kind: str, attempt: int) -> float:
    sql = "SELECT at FROM events WHERE job_id = ? AND type = ? AND attempt >= ? ORDER BY seq LIMIT 1"
    return datetime.fromisoformat(world.rows(sql, job_id, kind, attempt)[0][0]).timestamp()
