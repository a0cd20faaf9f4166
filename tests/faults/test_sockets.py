"""Many listeners while the service is killed: each hears every event once and in order."""

import asyncio
import random
import threading

import pytest
from plan import IS_LONG, schedules
from world import World

from jobs.async_client import AsyncClient

COUNT, STEPS = (1000, 600) if IS_LONG else (200, 200)
"""Sockets, and steps of their jobs: these must last until all are open and the service was killed twice."""
_OPENED_AT_ONCE = 20
"""A client that was never in contact gives up at once, as it should. How many come back at once is not limited."""


@pytest.fixture(scope="module")
def impatient() -> None:
    """Not here: that so many come back at once is the fault, and their pauses are the product's."""


@schedules("sockets")
def test_every_socket_hears_everything_once_while_the_service_is_killed(worlds, seed) -> None:
    world, dice = worlds.get(), random.Random(seed)
    world.service.pause_s = dice.uniform(0, 1)
    jobs = [
        world.submit_surely(world.spec(dice.randrange(10**9), steps=STEPS, save_steps=20, tags=("step-s=0.03",)))
        for _ in range(3)
    ]
    heard: list[tuple[str, list[int]]] = []
    connected: set[int] = set()
    listening = threading.Thread(target=lambda: heard.extend(asyncio.run(_listen(world, jobs, connected))), daemon=True)
    listening.start()
    world.until(lambda: len(connected) == COUNT or not listening.is_alive(), "not all sockets were opened")
    for _ in range(2):
        world.pass_time(dice.uniform(0.5, 2))
        world.kill("service")
    world.until(lambda: not listening.is_alive(), "a socket did not come to its job's end")
    stored = {job_id: _seqs(world, job_id) for job_id in jobs}
    wrong = [(job_id, len(seqs), len(stored[job_id])) for job_id, seqs in heard if seqs != stored[job_id]]
    assert len(heard) == COUNT
    assert not wrong, f"SEED={seed}: of {COUNT} sockets {len(wrong)} heard something else than was stored: {wrong[:5]}"
    worlds.check(seed, sockets=COUNT)


def _seqs(world: World, job_id: str) -> list[int]:
    return [seq for (seq,) in world.rows("SELECT seq FROM events WHERE job_id = ? ORDER BY seq", job_id)]


async def _listen(world: World, jobs: list[str], connected: set[int]) -> list[tuple[str, list[int]]]:
    opening = asyncio.Semaphore(_OPENED_AT_ONCE)
    async with AsyncClient(world.settings.address, patience_s=300) as client:

        async def one(number: int) -> tuple[str, list[int]]:
            job_id, heard = jobs[number % len(jobs)], []
            await opening.acquire()
            async for seq, _ in client.events(job_id):
                if number not in connected:
                    connected.add(number)
                    opening.release()
                if seq is not None:
                    heard.append(seq)
            return job_id, heard

        return await asyncio.gather(*(one(number) for number in range(COUNT)))
