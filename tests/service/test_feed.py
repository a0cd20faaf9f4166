"""What one listener hears, whenever it comes: everything behind its cursor, once and in order."""

import asyncio
import random

import pytest

from jobs.events import JobNoted, MetricsLogged
from service import feed, hub
from service.feed import Feeds
from service.records import Interest

NOTES = frozenset({"job.noted"})
ROUNDS = 60
LISTENERS = 25


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Limits so small that everything happens: pages, split pieces, slow listeners, bookmarks, ticks."""
    monkeypatch.setattr(feed, "WINDOW", 16)
    monkeypatch.setattr(feed, "SMALL_WINDOW", 4)
    for name, value in {
        "AT_ONCE": 3,
        "TICK_S": 0.004,
        "QUIET_S": 0.05,
        "PIECE_BYTES": 800,
        "QUEUE_BYTES": 4000,
    }.items():
        monkeypatch.setattr(hub, name, value)


@pytest.mark.parametrize("seed", range(4))
async def test_whoever_comes_whenever_hears_every_event_once_and_in_order(ledger, store, history, seed):
    chance = random.Random(seed)
    jobs = [history("job_a"), history("job_b")]
    for job in jobs:
        await ledger.record([job.submitted(), *job.started()])
    done, feeds = asyncio.Event(), Feeds(store, ledger._hub)

    async def record() -> None:
        for number in range(ROUNDS):
            job = chance.choice(jobs)
            kinds = [(JobNoted, {"message": f"note {number}"}), (MetricsLogged, {"step": number, "values": {"x": 1.0}})]
            said = [chance.choice(kinds) for _ in range(chance.randint(1, 6))]
            await ledger.record([job.event(kind, **fields) for kind, fields in said])
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() / 100)
        done.set()

    async def listen(pause_s: float, interest: Interest) -> None:
        await asyncio.sleep(chance.random() / 3)
        after = chance.choice([0, chance.randint(0, ledger._hub.head), ledger._hub.head])
        mine = feeds.feed(interest, after)
        heard, told = [], after
        async for piece in mine.follow():
            seqs = [seq for seq, _, _ in piece.items]
            assert piece.from_seq == told or not seqs
            assert all(piece.from_seq < seq <= piece.to_seq for seq in seqs)
            told = piece.to_seq if seqs else told
            heard += seqs
            await asyncio.sleep(pause_s * chance.random())
            if done.is_set() and mine.position == ledger._hub.head:
                break
        wanted = await store.events_of(interest, after=after)
        assert heard == [event.seq for event in wanted]

    interests = [
        Interest(),
        Interest.of("job_a"),
        Interest(types=NOTES),
        Interest.of("job_b", NOTES),
        Interest(jobs=frozenset({"job_a", "job_b"})),
        Interest(tag="birds", types=NOTES),
        Interest(tag="nobody's"),
    ]
    listeners = [listen(chance.choice([0, 0, 0.02]), chance.choice(interests)) for _ in range(LISTENERS)]
    async with asyncio.timeout(20):
        await asyncio.gather(record(), *listeners)
    assert not ledger._hub._groups


async def test_who_joined_between_two_ticks_soon_shares_the_pieces_of_its_group(ledger, store, history, monkeypatch):
    monkeypatch.setattr(hub, "TICK_S", 0.1)
    monkeypatch.setattr(hub, "PIECE_BYTES", 100_000)
    job = history("job_a")
    await ledger.record([job.submitted(), *job.started()])
    heard: tuple[list[hub.Piece], list[hub.Piece]] = ([], [])

    async def listen(pieces: list[hub.Piece]) -> None:
        async for piece in Feeds(store, ledger._hub).feed(Interest.of("job_a"), 3).follow():
            pieces += [piece] if piece.items else []

    async with asyncio.TaskGroup() as tasks:
        listening = [tasks.create_task(listen(heard[0]))]
        await asyncio.sleep(0.05)
        await ledger.record([job.event(JobNoted, message="told at once")])
        await ledger.record([job.event(JobNoted, message="waits for the tick")])
        listening.append(tasks.create_task(listen(heard[1])))
        await asyncio.sleep(0.2)
        for number in range(3):
            await ledger.record([job.event(JobNoted, message=f"shared {number}")])
            await asyncio.sleep(0.12)
        for each in listening:
            each.cancel()
    early, late = heard
    assert [seq for piece in late for seq, _, _ in piece.items] == [4, 5, 6, 7, 8]
    assert early[-1] is late[-1]
    assert early[-2] is late[-2]


def test_what_was_missed_is_read_in_few_windows_that_others_share() -> None:
    before, after = list(feed._windows(3, 62)), list(feed._windows(19, 71))
    assert before == [(0, 16), (16, 32), (32, 48), (48, 56), (56, 60), (60, 62)]
    assert after == [(16, 32), (32, 48), (48, 64), (64, 68), (68, 71)]


def test_who_misses_little_reads_only_that() -> None:
    assert list(feed._windows(60, 62)) == [(60, 62)]
    assert not list(feed._windows(62, 62))
