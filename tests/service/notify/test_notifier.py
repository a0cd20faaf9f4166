"""Deliveries: in order, at least once, by the schedule, over restarts, to receivers that fail in every way."""

import asyncio
import itertools
import json
from datetime import timedelta

import pytest
from standardwebhooks import Webhook

from jobs import events
from jobs.errors import AddressNotAllowed, InvalidInput, UnknownDelivery, UnknownWebhook, WrongState
from jobs.results import FinetuneResult
from service import outbox
from service.ledger import Write
from service.notify import courier, registry, schedule

HOUR = timedelta(hours=1)
ALL = ("job.submitted", "job.placed", "job.started", "metrics.logged", "job.completed")


async def _complete(sender, job, points=0):
    """Submit, start and complete a job, with points in between: 4 + points events."""
    logged = [job.event(events.MetricsLogged, n=2 + k, step=k, values={"train_loss": 0.5}) for k in range(points)]
    done = job.event(events.JobCompleted, n=2 + points, result=FinetuneResult(steps=1))
    await sender.ledger.commit(Write([(event, None) for event in (job.submitted(), *job.started(), *logged, done)]))


def _seqs(receiver):
    return [json.loads(got.body)["seq"] for got in receiver.got]


# -- what is sent


async def test_an_event_arrives_signed_and_the_standards_library_verifies_it(sender, receiver, history, monkeypatch):
    monkeypatch.setattr(sender.clock, "now", registry.Clock().now)
    webhook = await sender.webhooks.create(receiver.url)
    await _complete(sender, history())
    (delivery,) = await sender.settled(webhook.webhook_id)
    (got,) = receiver.got
    body = Webhook(webhook.secrets[0].text).verify(got.body, got.headers)
    assert body["type"] == body["data"]["type"] == "job.completed"
    assert (body["seq"], body["data"]["job_id"], body["timestamp"]) == (4, "job_a", body["data"]["at"])
    assert got.headers["webhook-id"] == delivery.message_id == "msg_job_a_4"
    assert got.headers["content-type"] == "application/json"
    assert (delivery.tries, delivery.status, delivery.error, delivery.next_at) == (1, 204, None, None)
    assert delivery.latency_ms >= 0


async def test_what_is_read_while_a_secret_is_rotated_is_signed_with_both(sender, receiver, history, monkeypatch):
    created = await sender.webhooks.create(receiver.url, ALL[:1])
    read = sender.store.due

    async def rotated_meanwhile(webhook_id, limit):
        due = await read(webhook_id, limit)
        if due and len(sender.webhooks.known(webhook_id).secrets) == 1:
            await sender.webhooks.rotate(webhook_id)
        return due

    monkeypatch.setattr(sender.store, "due", rotated_meanwhile)
    await sender.ledger.record([history("job_a").submitted()])
    await sender.settled(created.webhook_id)
    (got,) = receiver.got
    assert len(got.headers["webhook-signature"].split(" ")) == 2


async def test_while_a_secret_is_rotated_both_sign_and_after_a_day_only_the_new_one(sender, receiver, history):
    created = await sender.webhooks.create(receiver.url, ALL[:1])
    rotated = await sender.webhooks.rotate(created.webhook_id)
    assert rotated.secrets[1].text == created.secrets[0].text
    await sender.ledger.record([history("job_a").submitted()])
    await sender.settled(created.webhook_id)
    sender.clock.time += registry.OVERLAP
    await sender.ledger.record([history("job_b").submitted()])
    await sender.settled(created.webhook_id)
    during, after = (got.headers["webhook-signature"].split() for got in receiver.got)
    assert (len(during), len(after)) == (2, 1)
    assert len((await sender.webhooks.rotate(created.webhook_id)).secrets) == 2, "what is over is forgotten"


async def test_only_what_the_filter_chooses_is_sent_in_the_order_of_events(sender, receiver, history, configured):
    webhook = await sender.webhooks.create(
        receiver.url, ["job.completed", "job.submitted", "job.submitted"], tag="birds"
    )
    await _complete(sender, history("job_a"))
    await _complete(sender, history("job_b", history().spec.__class__(config=history().spec.config)))
    await sender.settled(webhook.webhook_id)
    assert [(json.loads(got.body)["data"]["job_id"], json.loads(got.body)["type"]) for got in receiver.got] == [
        ("job_a", "job.submitted"), ("job_a", "job.completed"),
    ]  # fmt: skip


@pytest.mark.parametrize("types", [["job.exploded"], ["job.progressed"], ["job.started", "*"]])
async def test_a_filter_names_events_that_there_are_and_that_are_stored(sender, receiver, types):
    with pytest.raises(InvalidInput) as refused:
        await sender.webhooks.create(receiver.url, types)
    assert refused.value.path == f"types[{len(types) - 1}]"


# -- failures


async def test_one_that_fails_is_tried_again_and_those_behind_it_wait(sender, receiver, history):
    statuses = iter([500, 404])
    receiver.script = lambda got: next(statuses, 200)
    webhook = await sender.webhooks.create(receiver.url, ALL)
    await _complete(sender, history())
    began = sender.clock.now()
    assert 4 <= (await sender.until_waiting() - began).total_seconds() <= 6
    first, *behind = await sender.log(webhook.webhook_id)
    assert (first.state, first.tries, first.status, first.error) == ("pending", 1, 500, "The receiver answered 500.")
    assert [(each.state, each.tries) for each in behind] == [("pending", 0)] * 3
    sender.clock.turn()
    await sender.until(lambda: len(receiver.got) == 2)
    assert 240 <= (await sender.until_waiting() - sender.clock.now()).total_seconds() <= 360
    sender.clock.turn()
    await sender.settled(webhook.webhook_id)
    assert _seqs(receiver) == [1, 1, 1, 2, 3, 4]
    assert len({got.headers["webhook-id"] for got in receiver.got[:3]}) == 1
    timestamps = [int(got.headers["webhook-timestamp"]) for got in receiver.got[:3]]
    assert timestamps == sorted(set(timestamps)), "each try says its own time, or the receiver would call it old"


async def test_a_receiver_that_asks_for_patience_gets_it(sender, receiver, history):
    receiver.script = lambda got: b"HTTP/1.1 429 x\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n"
    await sender.webhooks.create(receiver.url)
    await _complete(sender, history())
    assert await sender.until_waiting() == sender.clock.now() + HOUR


async def test_a_receiver_that_is_gone_is_disabled_with_an_event_that_others_hear(sender, receiver, listen, history):
    gone = await listen(script=lambda got: 410)
    lost = await sender.webhooks.create(gone.url, ALL)
    watcher = await sender.webhooks.create(receiver.url, ["webhook.disabled"])
    await _complete(sender, history())
    await sender.settled(watcher.webhook_id)
    assert len(gone.got) == 1
    assert [each.state for each in await sender.log(lost.webhook_id)] == ["held"] * 4
    record = sender.webhooks.known(lost.webhook_id)
    assert (record.enabled, "410" in record.disabled_reason) == (False, True)
    said = json.loads(receiver.got[0].body)["data"]
    assert (said["webhook_id"], said["reason"]) == (lost.webhook_id, record.disabled_reason)
    assert "job_id" not in said
    (stored,) = await sender.store.events(types=frozenset({"webhook.disabled"}))
    assert stored.seq == 5


async def test_five_days_of_failures_disable_and_what_was_kept_can_be_replayed(sender, receiver, history):
    receiver.script = lambda got: 503
    webhook = await sender.webhooks.create(receiver.url, ALL)
    began = sender.clock.now()
    await _complete(sender, history())
    while sender.webhooks.known(webhook.webhook_id).enabled:
        await sender.until_waiting()
        seen = len(receiver.got)
        sender.clock.turn()
        await sender.until(lambda seen=seen: len(receiver.got) > seen)
        await sender.until(lambda: sender.clock.waiting or not sender.webhooks.known(webhook.webhook_id).enabled)
    assert timedelta(days=5) <= sender.clock.now() - began <= timedelta(days=6.2)
    states = [each.state for each in await sender.log(webhook.webhook_id)]
    assert states[0] == "failed", "after ten tries it was given up, and the next one had its turn"
    assert _seqs(receiver)[:10] == [1] * 10
    await _complete(sender, history("job_b"))
    receiver.got.clear()
    receiver.script = lambda got: 200
    with pytest.raises(WrongState, match="enable it first"):
        await sender.notifier.replay(webhook.webhook_id, 0, undelivered_only=True)
    await sender.webhooks.change(webhook.webhook_id, enabled=True)
    assert await sender.notifier.replay(webhook.webhook_id, 0, undelivered_only=True) == 8
    await sender.settled(webhook.webhook_id)
    assert _seqs(receiver) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert sender.webhooks.known(webhook.webhook_id).disabled_reason is None


async def test_after_a_success_the_days_of_failures_are_counted_anew(sender, receiver, history):
    statuses = iter([500])
    receiver.script = lambda got: next(statuses, 200)
    webhook = await sender.webhooks.create(receiver.url, ALL[:1])
    await sender.ledger.record([history().submitted()])
    await sender.until_waiting()
    assert sender.webhooks.known(webhook.webhook_id).failing_since == sender.clock.now()
    sender.clock.turn()
    await sender.settled(webhook.webhook_id)
    await sender.until(lambda: sender.webhooks.known(webhook.webhook_id).failing_since is None)


async def test_an_address_that_became_private_is_refused_at_delivery(sender, receiver, names, history):
    names.names["hook.example"] = ["127.0.0.1"]
    webhook = await sender.webhooks.create(f"http://hook.example:{receiver.port}/")
    names.names["hook.example"] = ["10.0.0.1"]
    await _complete(sender, history())
    await sender.until_waiting()
    (delivery,) = await sender.log(webhook.webhook_id)
    assert (delivery.state, delivery.status) == ("pending", None)
    assert "private" in delivery.error
    assert receiver.got == []


async def test_one_receiver_that_is_down_does_not_delay_another(sender, receiver, listen, history):
    stuck = asyncio.Event()

    async def hangs(got):
        await stuck.wait()
        return 200

    slow = await listen(script=hangs)
    await sender.webhooks.create(slow.url, ALL)
    quick = await sender.webhooks.create(receiver.url, ALL)
    await _complete(sender, history())
    await sender.settled(quick.webhook_id)
    assert len(slow.got) == 1
    stuck.set()


async def test_what_the_database_cannot_note_is_sent_again(sender, receiver, history, monkeypatch):
    monkeypatch.setattr(courier, "_RETRY_S", 0.01)
    webhook = await sender.webhooks.create(receiver.url, ALL[:1])
    note, failures = outbox.note, iter([True])

    def note_or_fail(tried):
        return ("INSERT INTO nowhere VALUES (?)", [(1,)]) if next(failures, False) else note(tried)

    monkeypatch.setattr(outbox, "note", note_or_fail)
    await sender.ledger.record([history().submitted()])
    await sender.settled(webhook.webhook_id)
    assert _seqs(receiver) == [1, 1]


async def test_a_courier_that_fails_by_a_fault_of_ours_is_named_until_it_delivers(
    sender, receiver, history, monkeypatch
):
    monkeypatch.setattr(courier, "_RETRY_S", 0.01)
    webhook = await sender.webhooks.create(receiver.url, ALL[:1])
    send, named, failures = courier.send, [], iter([True, True])

    async def send_or_fail(*arguments):
        named.append(set(sender.ledger.upkeep.failing))
        if next(failures, False):
            raise KeyError("a fault of ours")
        return await send(*arguments)

    monkeypatch.setattr(courier, "send", send_or_fail)
    await sender.ledger.record([history().submitted()])
    await sender.settled(webhook.webhook_id)
    assert _seqs(receiver) == [1]
    assert named == [set(), {f"courier of {webhook.webhook_id}"}, {f"courier of {webhook.webhook_id}"}]
    assert not sender.ledger.upkeep.failing


# -- what people ask for


async def test_a_webhook_that_is_disabled_gets_nothing_and_goes_on_when_it_is_enabled(sender, receiver, history):
    webhook = await sender.webhooks.create(receiver.url, ALL[:1])
    await sender.webhooks.change(webhook.webhook_id, enabled=False)
    await sender.ledger.record([history("job_a").submitted()])
    await sender.webhooks.change(webhook.webhook_id, enabled=True)
    await sender.ledger.record([history("job_b").submitted()])
    await sender.until(lambda: receiver.got)
    assert _seqs(receiver) == [2]
    assert next(each.state for each in await sender.log(webhook.webhook_id)) == "held"


async def test_another_url_counts_from_the_next_try_on(sender, receiver, listen, history):
    down = await listen(script=lambda got: 500)
    webhook = await sender.webhooks.create(down.url)
    await _complete(sender, history())
    await sender.until_waiting()
    sender.clock.time += HOUR
    await sender.webhooks.change(webhook.webhook_id, url=receiver.url)
    await sender.settled(webhook.webhook_id)
    assert (len(down.got), len(receiver.got)) == (1, 1)


async def test_a_replay_begins_behind_a_cursor_and_keeps_ids(sender, receiver, history):
    await _complete(sender, history("job_a"))
    webhook = await sender.webhooks.create(receiver.url, ALL)
    assert await sender.notifier.replay(webhook.webhook_id, 2, undelivered_only=False) == 2
    await sender.settled(webhook.webhook_id)
    assert await sender.notifier.replay(webhook.webhook_id, 2, undelivered_only=True) == 0
    assert await sender.notifier.replay(webhook.webhook_id, 0, undelivered_only=False) == 4
    await sender.until(lambda: len(receiver.got) == 6)
    assert _seqs(receiver) == [3, 4, 1, 2, 3, 4]
    ids = [got.headers["webhook-id"] for got in receiver.got]
    assert ids[:2] == ids[4:]
    with pytest.raises(InvalidInput, match="beyond"):
        await sender.notifier.replay(webhook.webhook_id, 5, undelivered_only=True)


async def test_one_is_delivered_again_on_demand(sender, receiver, history):
    webhook = await sender.webhooks.create(receiver.url, ALL)
    await _complete(sender, history())
    log = await sender.settled(webhook.webhook_id)
    again = await sender.notifier.redeliver(webhook.webhook_id, log[1].delivery_id)
    assert (again.tries, again.message_id) == (0, log[1].message_id)
    await sender.until(lambda: len(receiver.got) == 5)
    assert _seqs(receiver) == [1, 2, 3, 4, 2]
    await sender.settled(webhook.webhook_id)
    await sender.ledger.delete("job_a")
    with pytest.raises(WrongState, match="deleted with its job"):
        await sender.notifier.redeliver(webhook.webhook_id, log[1].delivery_id)
    with pytest.raises(UnknownDelivery):
        await sender.notifier.redeliver(webhook.webhook_id, 999)
    with pytest.raises(UnknownWebhook):
        await sender.notifier.redeliver("hook_none", log[1].delivery_id)


async def test_a_ping_is_sent_once_also_when_disabled_and_keeps_nothing_of_the_answer(
    sender, receiver, listen, monkeypatch
):
    monkeypatch.setattr(sender.clock, "now", registry.Clock().now)
    webhook = await sender.webhooks.create(receiver.url)
    await sender.webhooks.change(webhook.webhook_id, enabled=False)
    assert (await sender.notifier.ping(webhook.webhook_id)).status == 204
    body = Webhook(webhook.secrets[0].text).verify(receiver.got[0].body, receiver.got[0].headers)
    assert (body["type"], body["data"]["webhook_id"]) == ("webhook.ping", webhook.webhook_id)
    receiver.script = lambda got: b"HTTP/1.1 500 x\r\ncontent-length: 6\r\n\r\nsecret"
    assert (await sender.notifier.ping(webhook.webhook_id)).error == "The receiver answered 500."
    good, bad = await sender.log(webhook.webhook_id)
    assert [(each.state, each.status, each.response) for each in (good, bad)] == [
        ("delivered", 204, None), ("failed", 500, None),
    ]  # fmt: skip
    await sender.webhooks.change(webhook.webhook_id, enabled=True)
    with pytest.raises(WrongState, match="another one"):
        await sender.notifier.redeliver(webhook.webhook_id, bad.delivery_id)
    assert sender.webhooks.known(webhook.webhook_id).failing_since is None


async def test_a_webhook_that_is_removed_is_gone_with_its_log(sender, receiver, history):
    webhook = await sender.webhooks.create(receiver.url, ALL)
    await sender.webhooks.remove(webhook.webhook_id)
    await _complete(sender, history())
    assert await sender.log(webhook.webhook_id) == []
    for work in (sender.webhooks.remove, sender.webhooks.rotate, sender.webhooks.change, sender.notifier.ping):
        with pytest.raises(UnknownWebhook):
            await work(webhook.webhook_id)
    assert receiver.got == []


async def test_nothing_is_registered_or_changed_to_an_address_that_is_not_allowed(sender, receiver):
    with pytest.raises(AddressNotAllowed):
        await sender.webhooks.create("https://10.0.0.1/")
    webhook = await sender.webhooks.create(receiver.url)
    with pytest.raises(AddressNotAllowed):
        await sender.webhooks.change(webhook.webhook_id, url="https://metadata.google.internal/")
    assert [each.url for each in sender.webhooks.all()] == [receiver.url]


# -- restarts


async def test_what_was_under_way_when_the_service_stopped_comes_after_the_restart(sender_at, receiver, history):
    hanging = asyncio.Event()

    async def hangs(got):
        await hanging.wait()
        return 200

    receiver.script = hangs
    async with sender_at() as sender:
        webhook = await sender.webhooks.create(receiver.url, ALL)
        await _complete(sender, history())
        await sender.until(lambda: receiver.got)
    receiver.script = lambda got: 200
    async with sender_at() as sender:
        await sender.settled(webhook.webhook_id)
        assert _seqs(receiver) == [1, 1, 2, 3, 4]
        assert receiver.got[0].headers["webhook-id"] == receiver.got[1].headers["webhook-id"]
    hanging.set()


async def test_ten_thousand_events_reach_a_receiver_that_is_down_for_six_hours_over_two_restarts(
    sender_at, memory, clock, history
):
    """By the schedule: the receiver is asked at 0 s, 5 s, 5 min, 30 min and 2 h after the try before, down each time,
    and gets everything, in order and once, at the first try after the six hours."""
    began = clock.now()
    is_up = began + 6 * HOUR
    tried_at = []

    def script(got):
        tried_at.append(clock.now())
        return 200 if clock.now() >= is_up else 503

    receiver = memory(script)
    async with sender_at(receiver) as sender:
        webhook = await sender.webhooks.create("http://127.0.0.1:8080/", ALL)
        await _complete(sender, history("job_a"), points=4996)
        await sender.until_waiting()
        clock.turn()
        await sender.until(lambda: len(tried_at) == 2)
        await sender.until_waiting()
    clock.waiting.clear()
    async with sender_at(receiver) as sender:
        await _complete(sender, history("job_b"), points=4996)
        while len(tried_at) < 5:
            seen = len(tried_at)
            await sender.until_waiting()
            clock.turn()
            await sender.until(lambda seen=seen: len(tried_at) > seen)
        await sender.until_waiting()
    clock.waiting.clear()
    async with sender_at(receiver) as sender:
        await sender.until_waiting()
        clock.turn()
        log = await sender.settled(webhook.webhook_id)

    assert is_up <= clock.now() <= began + 10 * HOUR
    assert len(log) == 10_000
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(tried_at[:6])]
    assert all(0.8 * pause <= gap <= 1.2 * pause for pause, gap in zip(schedule.DELAYS_S[1:6], gaps, strict=True))
    assert _seqs(receiver) == [1] * 5 + list(range(1, 10_001))
    assert {each.tries for each in log[1:]} == {1}
