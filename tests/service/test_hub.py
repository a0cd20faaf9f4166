"""The fan-out: who hears what, and what happens to the slow."""

import asyncio

from jobs.events import JobCancelled
from service.hub import QUEUE_BYTES, Hub, Published


def _event(seq: int | None, job_id: str = "job_a", name: str = "metrics.logged", body: bytes = b"{}") -> Published:
    return Published(seq, job_id, name, body)


async def test_a_listener_hears_its_job_only_and_in_order():
    hub = Hub()
    with hub.subscribe("job_a") as news, hub.subscribe() as everything:
        hub.publish([_event(1), _event(2, "job_b"), _event(3)])
        assert [seq for seq, _, _ in await anext(news)] == [1, 3]
        assert [seq for seq, _, _ in await anext(everything)] == [1, 2, 3]


async def test_a_listener_hears_the_types_it_asked_for():
    hub = Hub()
    with hub.subscribe("job_a", frozenset({"job.started"})) as news:
        hub.publish([_event(1), _event(2, name="job.started")])
        assert [name for _, name, _ in await anext(news)] == ["job.started"]


async def test_a_listener_waits_until_something_comes():
    hub = Hub()
    with hub.subscribe("job_a") as news:
        waiting = asyncio.ensure_future(anext(news))
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish([_event(1)])
        assert await waiting == [(1, "metrics.logged", b"{}")]


async def test_of_progress_only_the_newest_waits():
    hub = Hub()
    with hub.subscribe("job_a") as news:
        for step in (b"1", b"2", b"3"):
            hub.publish([_event(None, name="job.progressed", body=step)])
        hub.publish([_event(1)])
        assert await anext(news) == [(1, "metrics.logged", b"{}"), (None, "job.progressed", b"3")]


async def test_a_slow_listener_is_let_go_and_told_and_the_others_are_not_disturbed():
    hub = Hub()
    with hub.subscribe("job_a") as slow, hub.subscribe("job_a") as quick:
        for seq in range(1, 4):
            hub.publish([_event(seq, body=b"x" * (QUEUE_BYTES // 2))])
            assert [got for got, _, _ in await anext(quick)] == [seq]
        assert slow.lagging
        assert [batch async for batch in slow] == []
        assert not quick.lagging


async def test_progress_of_any_amount_never_fills_a_queue():
    hub = Hub()
    with hub.subscribe() as news:
        for _ in range(3):
            hub.publish([_event(None, name="job.progressed", body=b"x" * QUEUE_BYTES)])
        assert not news.lagging


async def test_a_closed_hub_ends_every_listener_after_what_it_already_had():
    hub = Hub()
    news, idle = hub.subscribe("job_a"), hub.subscribe()
    hub.publish([_event(1)])
    hub.close()
    assert [len(batch) async for batch in news] == [1]
    assert [len(batch) async for batch in idle] == [1]
    assert hub.closing.is_set()
    assert [batch async for batch in hub.subscribe()] == []


async def test_a_listener_that_left_is_forgotten():
    hub = Hub()
    with hub.subscribe("job_a"):
        pass
    assert not hub._subscriptions


async def test_who_expects_an_end_gets_the_record_once_it_ends(ledger, history):
    job = history()
    await ledger.record([job.submitted()])
    hub = ledger._hub
    first, second, other = hub.expect("job_a"), hub.expect("job_a"), hub.expect("job_b")
    second.cancel()
    await ledger.record([job.event(JobCancelled)])
    assert (await first).status == "cancelled"
    assert not other.done()
    other.cancel()
    await asyncio.sleep(0)
    assert not hub._expected
