"""The streams on a real server: order, positions, epochs, and a server that is away."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from redis import exceptions

from jobs import bus, commands, events, keys
from jobs.bus import BEGINNING, UNREACHABLE, Bus
from jobs.commands import Cancel, Pause, Resend


def waiting(reason: str) -> bytes:
    said = events.JobWaiting(job_id="j", attempt=1, at=datetime(2026, 1, 1, tzinfo=UTC), reason=reason)
    return events.encode(said)


async def test_events_come_back_in_order_with_growing_positions(real_bus: Bus) -> None:
    sent = [waiting(str(number)) for number in range(5)]
    await real_bus.publish(sent[:3])
    await real_bus.publish(sent[3:])
    read = await real_bus.read_events(BEGINNING)
    assert [message for _, message in read] == sent
    positions = [tuple(map(int, position.split("-"))) for position, _ in read]
    assert positions == sorted(set(positions))


async def test_reading_goes_on_behind_a_position_and_in_pieces(real_bus: Bus) -> None:
    await real_bus.publish([waiting(str(number)) for number in range(5)])
    first = await real_bus.read_events(BEGINNING, count=2)
    rest = await real_bus.read_events(first[-1][0])
    assert [len(first), len(rest)] == [2, 3]
    assert await real_bus.read_events(rest[-1][0], block_s=0.01) == []


async def test_a_waiting_reader_wakes_when_something_comes(real_bus: Bus) -> None:
    began = time.monotonic()
    read, _ = await asyncio.gather(real_bus.read_events(BEGINNING, block_s=5), real_bus.publish([waiting("now")]))
    assert [message for _, message in read] == [waiting("now")]
    assert time.monotonic() - began < 2


async def test_an_entry_of_somebody_else_comes_back_empty(real_bus: Bus) -> None:
    await real_bus._redis.xadd(keys.EVENTS, {"other": "field"})
    await real_bus.publish([waiting("a")])
    assert [message for _, message in await real_bus.read_events(BEGINNING)] == [b"", waiting("a")]


async def test_the_epoch_stays_until_the_stream_is_wiped(real_bus: Bus) -> None:
    epoch = await real_bus.epoch()
    assert await real_bus.epoch() == epoch
    await real_bus._redis.flushall()
    assert await real_bus.epoch() != epoch


async def test_what_is_recorded_is_forgotten_and_nothing_else(real_bus: Bus) -> None:
    await real_bus.publish([waiting(str(number)) for number in range(5)])
    read = await real_bus.read_events(BEGINNING)
    await real_bus.forget_events(read[2][0])
    assert await real_bus.read_events(BEGINNING) == read[3:]
    await real_bus.forget_events(BEGINNING)
    assert await real_bus.read_events(BEGINNING) == read[3:]


async def test_commands_reach_their_runner_alone_and_in_order(real_bus: Bus) -> None:
    wishes = [Cancel(job_id="a", attempt=1), Pause(job_id="b", attempt=1), Resend(job_id="c", attempt=2, from_n=3)]
    await real_bus.send("r1", wishes)
    await real_bus.send("r2", [Cancel(job_id="other", attempt=1)])
    position, read = await real_bus.read_commands("r1", BEGINNING)
    assert read == wishes
    assert await real_bus.read_commands("r1", position, block_s=0.01) == (position, [])


async def test_a_starting_runner_reads_what_comes_from_now_on(real_bus: Bus) -> None:
    assert await real_bus.commands_end("r1") == BEGINNING
    await real_bus.send("r1", [Cancel(job_id="old", attempt=1)])
    end = await real_bus.commands_end("r1")
    await real_bus.send("r1", [Cancel(job_id="new", attempt=1)])
    _, read = await real_bus.read_commands("r1", end)
    assert [wish.job_id for wish in read] == ["new"]


@pytest.mark.parametrize("rubbish", [b"", b"{}", b"\xff", b"[" * 100_000])
async def test_a_command_that_cannot_be_read_is_passed_over(real_bus: Bus, rubbish: bytes) -> None:
    await real_bus._redis.xadd(keys.commands("r1"), {keys.FIELD: rubbish})
    await real_bus.send("r1", [Cancel(job_id="a", attempt=1)])
    _, read = await real_bus.read_commands("r1", BEGINNING)
    assert read == [Cancel(job_id="a", attempt=1)]


async def test_old_commands_are_trimmed(real_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "_COMMANDS_KEPT", 100)
    for _ in range(10):
        await real_bus.send("r1", [Cancel(job_id="a", attempt=1)] * 100)
    assert await real_bus._redis.xlen(keys.commands("r1")) <= 300, "trimmed by whole nodes of the stream"


async def test_a_server_that_is_away_is_told_within_seconds() -> None:
    away = bus.connect("redis://127.0.0.1:1/0")
    began = time.monotonic()
    assert not await away.is_reachable()
    for attempt in (
        away.publish([b"x"]),
        away.read_events(BEGINNING),
        away.epoch(),
        away.forget_events("1-1"),
        away.send("r", [Cancel(job_id="j", attempt=1)]),
        away.commands_end("r"),
        away.read_commands("r", BEGINNING),
    ):
        with pytest.raises(UNREACHABLE):
            await attempt
    assert time.monotonic() - began < 10
    await away.close()


@pytest.fixture
async def hung() -> AsyncIterator[Bus]:
    """A bus on a server that accepts and says nothing."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connected = bus.connect(f"redis://127.0.0.1:{port}/0")
    yield connected
    await connected.close()
    server.close()
    await server.wait_closed()


async def test_a_server_that_accepts_and_says_nothing_counts_as_away(hung: Bus) -> None:
    began = time.monotonic()
    assert not await hung.is_reachable()
    assert time.monotonic() - began < 3


async def test_nobody_waits_long_for_a_server_that_says_nothing(hung: Bus) -> None:
    began = time.monotonic()
    answers = await asyncio.gather(
        hung.publish([b"x"]),
        hung.read_events(BEGINNING, block_s=0.5),
        hung.epoch(),
        hung.clock_s(),
        hung.forget_events("1-1"),
        hung.send("r", [Cancel(job_id="j", attempt=1)]),
        hung.commands_end("r"),
        hung.read_commands("r", BEGINNING, block_s=0.5),
        return_exceptions=True,
    )
    assert all(isinstance(answer, UNREACHABLE) for answer in answers)
    assert time.monotonic() - began < 4


async def test_an_entry_tells_when_it_was_added_on_the_clock_of_the_server(real_bus: Bus) -> None:
    before = await real_bus.clock_s()
    await real_bus.publish([waiting("now")])
    ((position, _),) = await real_bus.read_events(BEGINNING)
    assert before - 0.001 <= bus.said_at_s(position) <= await real_bus.clock_s()


async def test_a_connected_bus_is_reachable(real_bus: Bus) -> None:
    assert await real_bus.is_reachable()


def test_every_error_of_the_client_counts_as_unreachable() -> None:
    for error in (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, OSError):
        assert issubclass(error, UNREACHABLE)


def test_two_runners_share_no_name() -> None:
    names = {keys.commands(runner) for runner in ("a", "b")} | {
        name(runner, slot)
        for name in (keys.queue, keys.queue_health)
        for runner in ("a", "b")
        for slot in ("cpu", "gpu")
    }
    assert len(names | {keys.EVENTS, keys.EPOCH}) == 2 + 8 + 2
    assert commands.encode(Cancel(job_id="j", attempt=1)).isascii()
