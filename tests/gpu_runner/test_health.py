"""The check that a container makes of its runner: true while it takes work, false soon after it does not."""

import asyncio
import os
import signal
import subprocess
import sys

import msgspec

from gpu_runner import health
from jobs.settings import Settings


async def test_a_runner_that_works_is_healthy_and_only_under_its_name(front, settings) -> None:
    assert await soon(settings, True)
    assert not await health.is_working(msgspec.structs.replace(settings, runner_id="somebody-else"))


async def test_a_runner_that_hangs_is_not_healthy(listener, settings, program) -> None:
    runner = program()
    assert await soon(settings, True)
    os.kill(runner.pid, signal.SIGSTOP)
    assert await soon(settings, False)


async def test_a_runner_without_redis_is_not_healthy(settings) -> None:
    nowhere = msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:1")
    assert not await health.is_working(nowhere)


def test_the_check_says_by_its_exit_status_which_runner_takes_no_work(settings) -> None:
    environment = os.environ | settings.to_environment() | {"REDIS_URL": "redis://127.0.0.1:1"}
    check = [sys.executable, "-m", "gpu_runner.health"]
    answer = subprocess.run(check, env=environment, capture_output=True, text=True)
    assert answer.returncode == 1
    assert settings.runner_name in answer.stderr


async def soon(settings: Settings, expected: bool) -> bool:
    """Whether the check says so within the ten seconds in which a dead runner's key is gone."""
    for _ in range(100):
        if await health.is_working(settings) is expected:
            return True
        await asyncio.sleep(0.1)
    return False
