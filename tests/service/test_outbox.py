"""What is written for webhooks: with the event, in its order, through disabling, deleting and replaying."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from jobs import events
from jobs.results import FinetuneResult
from service import outbox
from service.ledger import Write
from service.records import Secret, WebhookRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def hook(webhook_id="hook_a", **changes):
    wanted = {"types": ("job.submitted", "job.started", "job.completed"), "url": "https://example.com/"}
    return WebhookRecord(webhook_id=webhook_id, secrets=(Secret(text="whsec_x"),), created_at=NOW, **wanted | changes)


@pytest.fixture
def states(store):
    """(type, state) of everything for a webhook, oldest first."""

    async def read(webhook_id="hook_a"):
        return [(each.type, each.state) for each in reversed(await store.deliveries(webhook_id))]

    return read


async def _complete(ledger, job):
    done = job.event(events.JobCompleted, n=2, result=FinetuneResult(steps=1))
    await ledger.record([job.submitted(), *job.started(), done])


async def test_an_event_is_due_for_those_who_want_it_in_the_order_of_seq(ledger, store, history):
    await store.apply([*outbox.save(hook()), *outbox.save(hook("hook_b", types=("job.placed",)))])
    await _complete(ledger, history())
    due = await store.due("hook_a", 10)
    assert [(each.seq, each.type) for each in due] == [(1, "job.submitted"), (3, "job.started"), (4, "job.completed")]
    assert [each.type for each in await store.due("hook_b", 10)] == ["job.placed"]
    assert due[0].message_id == "msg_job_a_1"
    assert b'"job.submitted"' in due[0].body
    assert len(await store.due("hook_a", 2)) == 2


async def test_without_the_transaction_of_the_event_there_is_no_delivery(ledger, store, history, monkeypatch):
    await store.apply(outbox.save(hook()))
    monkeypatch.setattr(outbox, "_INSERT_WANTED", "INSERT INTO nowhere SELECT ?")
    with pytest.raises(Exception, match="nowhere"):
        await ledger.record([history().submitted()])
    assert await store.events() == []


async def test_a_tag_chooses_jobs_that_have_it_from_their_first_event_on(ledger, store, history, states):
    await store.apply([*outbox.save(hook(tag="birds")), *outbox.save(hook("hook_b", tag="fish"))])
    await ledger.record([history().submitted()])
    assert await states() == [("job.submitted", "pending")]
    assert await states("hook_b") == []


async def test_what_comes_while_a_webhook_is_disabled_is_held_and_can_be_replayed(ledger, store, history, states):
    await store.apply(outbox.save(hook()))
    job = history()
    await ledger.record([job.submitted()])
    await store.apply(outbox.save(hook(enabled=False)))
    await ledger.record(job.started())
    assert await states() == [("job.submitted", "held"), ("job.started", "held")]
    await store.apply(outbox.save(hook()))
    assert await store.due("hook_a", 10) == []
    assert (await store.tallies())["hook_a"]["held"] == outbox.Tally(count=2, first_seq=1)
    assert await store.apply(outbox.replay_undelivered("hook_a", 1)) == 1
    assert await states() == [("job.submitted", "held"), ("job.started", "pending")]


async def test_a_replay_brings_what_happened_before_there_was_a_webhook_under_the_same_ids(ledger, store, history):
    await _complete(ledger, history())
    await store.apply(outbox.save(hook()))
    assert await store.apply(outbox.replay("hook_a", 1)) == 2
    first = await store.due("hook_a", 10)
    taken = [msgspec.structs.replace(each, state="delivered", tries=3, status=204) for each in first]
    await store.apply([outbox.note(taken)])
    assert await store.due("hook_a", 10) == []
    assert await store.apply(outbox.replay("hook_a", 1)) == 2
    again = await store.due("hook_a", 10)
    assert [each.message_id for each in again] == [each.message_id for each in first]
    assert [(each.tries, each.next_at) for each in again] == [(0, None)] * 2


async def test_how_a_try_went_reads_back_and_a_held_one_stays_held_unless_it_arrived(ledger, store, history, states):
    await store.apply(outbox.save(hook()))
    await ledger.record([history().submitted()])
    (due,) = await store.due("hook_a", 1)
    tried = msgspec.structs.replace(
        due, tries=1, next_at=NOW, attempted_at=NOW, status=500, latency_ms=12, error="500", response="no"
    )
    await store.apply([outbox.note([tried])])
    assert await store.delivery("hook_a", due.delivery_id) == tried
    await store.apply(outbox.save(hook(enabled=False)))
    await store.apply([outbox.note([tried])])
    assert await states() == [("job.submitted", "held")]
    await store.apply([outbox.note([msgspec.structs.replace(tried, state="delivered")])])
    assert await states() == [("job.submitted", "delivered")]


async def test_a_job_that_is_deleted_takes_nothing_from_those_who_were_not_told_yet(ledger, store, history):
    await store.apply([*outbox.save(hook()), *outbox.save(hook("hook_b"))])
    await _complete(ledger, history())
    taken = [msgspec.structs.replace(each, state="delivered") for each in await store.due("hook_b", 10)]
    await store.apply([outbox.note(taken)])
    await ledger.delete("job_a")
    assert [each.type for each in await store.due("hook_a", 10)] == ["job.submitted", "job.started", "job.completed"]
    assert all(b'"job_a"' in each.body for each in await store.due("hook_a", 10))
    assert [each.body for each in await store.deliveries("hook_b")] == [None] * 3
    await store.apply(outbox.save(hook(enabled=False)))
    await store.apply(outbox.save(hook()))
    assert await store.apply(outbox.replay("hook_a", 0)) == 3
    assert await store.apply(outbox.replay("hook_b", 0)) == 0


async def test_an_event_that_is_thinned_out_still_reaches_those_who_were_not_told_yet(ledger, store, history):
    await store.apply([*outbox.save(hook(types=("metrics.logged",))), *outbox.save(hook("hook_b", enabled=False))])
    job = history()
    logged = job.event(events.MetricsLogged, n=2, step=1, values={"train_loss": 0.5})
    await ledger.record([job.submitted(), *job.started(), logged])
    await store.apply([("DELETE FROM events WHERE job_id = ?", [("job_a",)])])
    (due,) = await store.due("hook_a", 10)
    assert events.decode_event(due.body) == logged
    assert [each.body is not None for each in await store.deliveries("hook_b", "held")] == [True, True]
    assert await store.apply(outbox.replay("hook_a", 0)) == 1


async def test_disabling_and_the_event_that_says_so_are_one_transaction(ledger, store, history, states):
    watcher = hook("hook_b", types=("webhook.disabled",))
    await store.apply([*outbox.save(hook()), *outbox.save(watcher)])
    await ledger.record([history().submitted()])
    said = events.WebhookDisabled(webhook_id="hook_a", reason="gone", at=NOW)
    await ledger.commit(Write([(said, None)], disabled=[hook(enabled=False)]))
    assert await states() == [("job.submitted", "held")]
    (stored,) = await store.events(types=frozenset({"webhook.disabled"}))
    assert events.decode_event(stored.body) == said
    (told,) = await store.due("hook_b", 10)
    assert told.message_id == f"msg_hook_b_{stored.seq}"


async def test_a_webhook_goes_with_its_log_and_old_deliveries_are_forgotten(ledger, store, history, states):
    await store.apply([*outbox.save(hook()), *outbox.save(hook("hook_b"))])
    await _complete(ledger, history())
    await store.apply(outbox.remove("hook_b"))
    assert [each.webhook_id for each in await store.webhooks()] == ["hook_a"]
    assert await states("hook_b") == []
    first, *rest = await store.due("hook_a", 10)
    old = msgspec.structs.replace(first, state="delivered", attempted_at=NOW)
    new = msgspec.structs.replace(rest[0], state="delivered", attempted_at=NOW + timedelta(days=2))
    await store.apply([outbox.note([old, new])])
    await store.apply(outbox.forget_delivered(NOW + timedelta(days=1)))
    assert await states() == [("job.started", "delivered"), ("job.completed", "pending")]


async def test_the_log_pages_newest_first_and_has_pings_too(ledger, store, history):
    await store.apply(outbox.save(hook()))
    await _complete(ledger, history())
    (due, *_) = await store.due("hook_a", 1)
    ping = msgspec.structs.replace(due, message_id="msg_p", type="webhook.ping", attempted_at=NOW)
    await store.apply([outbox.note_ping(ping, None, 3, "refused")])
    first = await store.deliveries("hook_a", limit=2)
    rest = await store.deliveries("hook_a", before=first[-1].delivery_id)
    assert [each.type for each in first + rest] == ["webhook.ping", "job.completed", "job.started", "job.submitted"]
    assert [each.type for each in await store.deliveries("hook_a", "failed")] == ["webhook.ping"]
    assert "job.submitted" in [each.type for each in await store.due("hook_a", 10)]
    assert await store.delivery("hook_b", first[0].delivery_id) is None
