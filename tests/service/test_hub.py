"""The fan-out: who hears what, and what happens to the slow."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from jobs import columns, events, frames
from jobs.events import JobCancelled
from service import hub as fan_out
from service.hub import QUEUE_BYTES, Backlog, Hub, Piece, Published
from service.records import Interest

AT = datetime(2026, 1, 1, tzinfo=UTC)


def _event(
    seq: int | None,
    job_id: str = "job_a",
    name: str = "metrics.logged",
    body: bytes = b"{}",
    tags: tuple[str, ...] = (),
) -> Published:
    return Published(seq, job_id, name, body, tags)


def _said(kind: type[events.Event], n: int, **fields: Any) -> bytes:
    return events.encode(kind(job_id="job_a", attempt=1, at=AT, n=n, **fields))


def _point(n: int) -> bytes:
    return _said(events.MetricsLogged, n, step=n, epoch=n / 10, values={"train_loss": 1 / n, "learning_rate": 2e-4})


def _note(n: int) -> bytes:
    return _said(events.JobNoted, n, message="so it is")


def _progress(step: int) -> bytes:
    return events.encode(
        events.JobProgressed(job_id="job_a", attempt=1, at=AT, step=step, total_steps=9, fraction=step / 9)
    )


def _seqs(piece: Piece) -> list[int]:
    return [seq for seq, _, _ in piece.items]


async def test_a_listener_hears_its_job_only_and_in_order():
    hub = Hub()
    with hub.subscribe("job_a") as news, hub.subscribe() as everything:
        hub.publish([_event(1), _event(2, "job_b"), _event(3)])
        assert _seqs(await anext(news)) == [1, 3]
        assert _seqs(await anext(everything)) == [1, 2, 3]


async def test_a_listener_hears_the_types_it_asked_for():
    hub = Hub()
    with hub.subscribe("job_a", frozenset({"job.started"})) as news:
        hub.publish([_event(1), _event(2, name="job.started")])
        assert [name for _, name, _ in (await anext(news)).items] == ["job.started"]


async def test_a_listener_waits_until_something_comes():
    hub = Hub()
    with hub.subscribe("job_a") as news:
        waiting = asyncio.ensure_future(anext(news))
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish([_event(1)])
        assert (await waiting).items == [(1, "metrics.logged", b"{}")]


async def test_who_was_quiet_hears_at_once_and_then_what_a_tick_brings_together(monkeypatch):
    monkeypatch.setattr(fan_out, "TICK_S", 0.2)
    hub = Hub()
    with hub.subscribe("job_a") as news:
        for seq in range(1, 5):
            hub.publish([_event(seq)])
        assert _seqs(await anext(news)) == [1], "the first one waits for no tick"
        assert _seqs(await anext(news)) == [2, 3, 4]


async def test_those_who_listen_to_the_same_share_one_encoded_piece():
    hub = Hub()
    with hub.subscribe("job_a") as first, hub.subscribe("job_a") as second:
        hub.publish([_event(1, body=_point(1)), _event(2, "job_b")])
        piece = await anext(first)
        assert piece is await anext(second)
        assert piece.frame is piece.frame
        assert (piece.from_seq, piece.to_seq) == (0, 2)


async def test_pieces_follow_one_another_and_none_is_larger_than_clients_take(monkeypatch):
    monkeypatch.setattr(fan_out, "PIECE_BYTES", 10)
    hub = Hub()
    with hub.subscribe("job_a") as news:
        hub.publish([_event(seq, "job_a" if seq % 2 else "job_b", body=b"12345") for seq in range(1, 11)])
        pieces = [await anext(news) for _ in range(3)]
    assert [_seqs(piece) for piece in pieces] == [[1, 3], [5, 7], [9]]
    assert [(piece.from_seq, piece.to_seq) for piece in pieces] == [(0, 3), (3, 7), (7, 10)]


async def test_of_progress_only_the_newest_of_a_tick_is_told_and_in_its_place():
    hub = Hub()
    with hub.subscribe("job_a") as news:
        hub.publish([_event(1)])
        for seq, step in enumerate((b"1", b"2", b"3"), 2):
            hub.publish([_event(None, name="job.progressed", body=step)])
            hub.publish([_event(seq)])
        await anext(news)
        assert [seq or body for seq, _, body in (await anext(news)).items] == [2, 3, b"3", 4]


async def test_who_hears_nothing_for_long_is_told_how_far_it_is_fresh(monkeypatch):
    monkeypatch.setattr(fan_out, "QUIET_S", 0.05)
    hub = Hub()
    with hub.subscribe("job_a") as news:
        hub.publish([_event(7, "job_b")])
        piece = await anext(news)
    assert (piece.items, piece.to_seq) == ((), 7)


async def test_a_slow_listener_is_let_go_and_told_and_the_others_are_not_disturbed():
    hub = Hub()
    with hub.subscribe("job_a") as slow, hub.subscribe("job_a") as quick:
        for seq in range(1, 4):
            hub.publish([_event(seq, body=b"x" * (QUEUE_BYTES // 2))])
            assert _seqs(await anext(quick)) == [seq]
        assert slow.lagging
        assert [piece async for piece in slow] == []
        assert not quick.lagging


async def test_who_was_let_go_within_a_turn_is_not_told_the_rest_of_it(monkeypatch):
    monkeypatch.setattr(fan_out, "PIECE_BYTES", QUEUE_BYTES)
    hub = Hub()
    with hub.subscribe("job_a") as slow:
        hub.publish([_event(1, body=b"x" * (QUEUE_BYTES + 1)), _event(2)])
        assert slow.lagging
        assert [piece async for piece in slow] == [], "a piece behind the gap would hide it"


async def test_what_waits_for_a_client_counts_over_all_its_subscriptions(monkeypatch):
    hub, backlog = Hub(), Backlog()
    one = hub.listen(Interest.of("job_a"), backlog=backlog)
    other = hub.listen(Interest.of("job_b"), backlog=backlog)
    hub.publish([_event(1, body=b"x" * (QUEUE_BYTES * 2 // 3))])
    assert not one.lagging
    hub.publish([_event(2, "job_b", body=b"x" * (QUEUE_BYTES * 2 // 3))])
    assert other.lagging
    assert not one.lagging
    assert _seqs(await anext(one)) == [1]
    assert backlog.bytes == 0
    hub.close()


async def test_who_listens_to_several_jobs_or_a_tag_hears_them_in_one_order():
    hub = Hub()
    several = hub.listen(Interest(jobs=frozenset({"job_a", "job_c"})))
    tagged = hub.listen(Interest(tag="birds", types=frozenset({"job.started"})))
    birds = {"tags": ("big", "birds")}
    hub.publish(
        [
            _event(1, "job_a"),
            _event(2, "job_b", **birds),
            _event(3, "job_c"),
            _event(4, "job_a", "job.started", **birds),
        ]
    )
    assert _seqs(await anext(several)) == [1, 3, 4]
    assert _seqs(await anext(tagged)) == [4]
    hub.close()


async def test_who_is_calm_hears_the_same_in_fewer_pieces(monkeypatch):
    monkeypatch.setattr(fan_out, "TICK_S", 0.01)
    monkeypatch.setattr(fan_out, "CALM_TICK_S", 0.5)
    hub = Hub()
    calm, quick = hub.listen(Interest(), calm=True), hub.listen(Interest())
    for seq in range(1, 6):
        hub.publish([_event(seq)])
        await asyncio.sleep(0.03)
    assert [len(_seqs(await anext(quick))) for _ in range(5)] == [1] * 5
    assert [_seqs(await anext(calm)), _seqs(await anext(calm))] == [[1], [2, 3, 4, 5]]
    hub.close()


async def test_while_many_come_at_once_whoever_is_there_hears_the_same_in_fewer_pieces(monkeypatch):
    monkeypatch.setattr(fan_out, "TICK_S", 0.01)
    monkeypatch.setattr(fan_out, "CALM_TICK_S", 0.5)
    monkeypatch.setattr(fan_out, "CROWD", 3)
    hub = Hub()
    first = hub.listen(Interest())
    assert not hub.is_crowded
    others = [hub.listen(Interest.of("job_b")) for _ in range(2)]
    assert hub.is_crowded
    for seq in range(1, 6):
        hub.publish([_event(seq)])
        await asyncio.sleep(0.03)
    assert [_seqs(await anext(first)), _seqs(await anext(first))] == [[1], [2, 3, 4, 5]]
    await asyncio.sleep(1.05)
    assert not hub.is_crowded, f"the {len(others) + 1} came a second ago"
    hub.close()


async def test_points_of_a_named_subscriptions_frame_stand_in_columns_and_lose_nothing():
    hub = Hub()
    with hub.subscribe("job_a") as news:
        hub.publish([_event(1, name="job.noted", body=_note(1))])
        for seq in range(2, 6):
            hub.publish([_event(None, name="job.progressed", body=_progress(seq)), _event(seq, body=_point(seq))])
        await anext(news)
        piece = await anext(news)
    frame = frames.decode_server(piece.frame_of("curves"))
    assert isinstance(frame, frames.Events)
    assert (frame.sub, frame.merged, len(frame.points), len(frame.events)) == ("curves", True, 1, 1)
    unfolded = [(one.seq, bytes(one.event)) for one in columns.unfold(frame)]
    assert unfolded == [*((seq, _point(seq)) for seq in range(2, 6)), (None, _progress(5))]
    plain = frames.decode_server(piece.frame)
    assert isinstance(plain, frames.Events)
    assert (plain.merged, len(plain.events)) == (False, 5), "without a handshake every event stands by itself"
    assert len(piece.frame_of("curves")) < len(piece.frame)


async def test_a_group_ends_with_its_last_listener_also_when_that_was_too_slow():
    hub = Hub()
    with hub.subscribe("job_a") as slow:
        (group,) = hub._groups.values()
        hub.publish([_event(1, body=b"x" * (QUEUE_BYTES + 1))])
        assert slow.lagging
        assert not hub._groups
        assert group._timer.cancelled()


async def test_listeners_are_woken_in_parts_and_each_hears_all_in_order(monkeypatch):
    monkeypatch.setattr(fan_out, "AT_ONCE", 2)
    hub = Hub()
    news = [hub.subscribe("job_a") for _ in range(5)]
    hub.publish([_event(1)])
    assert sum(bool(each._waiting) for each in news) == 2
    hub.publish([_event(2)])
    assert [(_seqs(await anext(each)), _seqs(await anext(each))) for each in news] == [([1], [2])] * 5
    hub.close()


async def test_a_closed_hub_ends_every_listener_after_what_it_already_had():
    hub = Hub()
    news, idle = hub.subscribe("job_a"), hub.subscribe()
    hub.publish([_event(1)])
    hub.publish([_event(2)])  # waits for the tick
    hub.close()
    assert [_seqs(piece) async for piece in news] == [[1], [2]]
    assert [_seqs(piece) async for piece in idle] == [[1], [2]]
    assert hub.closing.is_set()
    assert [piece async for piece in hub.subscribe()] == []


async def test_a_listener_that_left_is_forgotten():
    hub = Hub()
    with hub.subscribe("job_a"):
        pass
    assert not hub._groups


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
