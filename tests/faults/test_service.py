"""A service that is away: for long while a job trains, and in the middle of telling a receiver of webhooks."""

import random
import signal
from collections.abc import Iterator

import httpx
import pytest
from plan import IS_LONG, schedules
from receiver import Receiver, receiving
from world import World

AWAY_S = 300 if IS_LONG else 5
TOLD = ("job.submitted", "job.placed", "job.started", "checkpoint.saved", "artifact.created", "job.completed")


@pytest.fixture(scope="module")
def telling(worlds_of):
    """May call loopback; no runner is lost because it reports late."""
    return worlds_of(outgoing_networks=("127.0.0.0/8",), lease_s=15.0)


@schedules("away")
def test_a_training_goes_on_while_the_service_is_stopped_and_no_point_is_lost(telling, seed) -> None:
    """By SIGTERM or SIGKILL, as an operator and as a crash would; the judge compares each point."""
    world, dice = telling.get(), random.Random(seed)
    how = dice.choice((signal.SIGTERM, signal.SIGKILL))
    step_s = 0.05
    steps = int((AWAY_S + 3) / step_s)
    spec = world.spec(dice.randrange(10**9), steps=steps, save_steps=100, tags=(f"step-s={step_s}",))
    job_id = world.submit_surely(spec)
    world.until(lambda: world.step(job_id) >= 4, "the job does not start")
    world.service.held = True
    world.service.signal(how)
    world.until(lambda: not world.service.is_alive, "the service does not end")
    before = world.step(job_id)
    world.pass_time(AWAY_S)
    assert world.step(job_id) == before, "somebody wrote the database of a service that is away"
    world.until(lambda: _points(world, job_id) > before // 2 + 5, "the training stands still as well")
    points = _points(world, job_id) - before // 2
    telling.check(seed, away_s=AWAY_S, points=points)
    assert world.rows("SELECT max(attempt) FROM events WHERE job_id = ?", job_id) == [(1,)], "it was interrupted"


def _points(world: World, job_id: str) -> int:
    """How many its journal has; one every two steps."""
    return world.root.attempt(job_id, 1).journal.read_bytes().count(b"metrics.logged")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@schedules("webhooks")
def test_a_receiver_hears_of_each_event_though_the_service_is_killed_while_it_tells(telling, receiver, seed) -> None:
    """A delivery that was under way comes again, under the `webhook-id` it had: that is how a receiver knows it. Beyond
    such repeats nothing is doubled, nothing is lost, and the order is that of the events."""
    world, dice = telling.get(), random.Random(seed)
    world.service.pause_s = 0.0
    receiver.slow_s = 0.05
    created = world.client.post("/api/webhooks", {"url": receiver.url, "types": list(TOLD)})
    after = _head(world)
    kills = 0
    for _ in range(3):
        world.submit_surely(world.spec(dice.randrange(10**9), steps=20, save_steps=4))
        heard = len(receiver.got) + dice.randrange(1, 4)
        world.until(lambda heard=heard: len(receiver.got) >= heard or not _waiting(world), "nothing is told")
        world.pass_time(dice.uniform(0, 0.05))
        kills += world.kill("service")
    world.until(lambda: not world.unended and not _waiting(world), "not everything is told")
    wanted = _wanted(world, after)
    told = receiver.verified(created["secret"])
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    first = dict(zip(reversed(ids), reversed(told), strict=True))
    in_order = [first[each]["seq"] for each in dict.fromkeys(ids)]
    assert in_order == wanted, f"SEED={seed}"
    assert all(said == first[each] for each, said in zip(ids, told, strict=True)), "a repeat says something else"
    assert kills or len(ids) == len(first), "something came twice without a reason"
    rows = world.rows("SELECT seq FROM deliveries WHERE state = 'delivered' AND webhook_id = ?", created["webhook_id"])
    assert sorted(seq for (seq,) in rows) == wanted
    httpx.delete(f"{world.settings.address}/api/webhooks/{created['webhook_id']}").raise_for_status()
    telling.check(seed, killed=["service"] * kills, told=len(wanted), repeats=len(ids) - len(first))


def _head(world: World) -> int:
    return int(world.rows("SELECT coalesce(max(seq), 0) FROM events")[0][0])


def _waiting(world: World) -> list[tuple[int]]:
    return world.rows("SELECT seq FROM deliveries WHERE state = 'pending'")


def _wanted(world: World, after: int) -> list[int]:
    marks = ", ".join("?" * len(TOLD))
    found = world.rows(f"SELECT seq FROM events WHERE seq > ? AND type IN ({marks}) ORDER BY seq", after, *TOLD)
    return [seq for (seq,) in found]
