"""What becomes true: from the service itself, from the stream, and through every kind of trouble."""

import asyncio
import sqlite3
from datetime import UTC, datetime

import pytest

from jobs import bus as streams
from jobs import events, redis_server
from jobs.errors import Unavailable, UnknownExport, UnknownJob, WrongState
from jobs.events import JobCompleted, MetricsLogged, TrainingResumed
from jobs.lifecycle import Status
from jobs.results import FinetuneResult
from jobs.settings import Settings
from service import hub
from service.hub import Hub
from service.ledger import Ledger, Write
from service.records import Interest

DONE = FinetuneResult(steps=30)


def _logged(job, n, step, attempt=1, **values):
    return job.event(MetricsLogged, attempt, n, step=step, values=values or {"train_loss": 1.0 / step})


async def _publish(core, *said):
    await core.bus.publish([events.encode(event) for event in said])


# -- writing


async def test_what_was_accepted_is_on_the_disk_before_the_answer(ledger, history, tmp_path):
    await ledger.record([history().submitted()])
    with sqlite3.connect(tmp_path / "training.db") as other:
        assert other.execute("SELECT job_id, status FROM jobs").fetchall() == [("job_a", "pending")]
        assert other.execute("SELECT type FROM events").fetchall() == [("job.submitted",)]
    other.close()


async def test_callers_that_wait_together_share_a_transaction(ledger, store, history, monkeypatch):
    written = []
    write = store.write

    async def counted(batch):
        written.append(len(batch.events))
        await write(batch)

    monkeypatch.setattr(store, "write", counted)
    submissions = [ledger.record([history(f"job_{k}").submitted()]) for k in range(40)]
    records = await asyncio.gather(*submissions)
    assert [record.job_id for (record,) in records] == [f"job_{k}" for k in range(40)]
    assert sum(written) == 40
    assert len(written) <= 2


async def test_a_failed_transaction_leaves_no_trace_and_the_next_one_works(ledger, store, history, monkeypatch):
    write = store.write

    async def fails(batch):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "write", fails)
    with pytest.raises(Unavailable, match="disk is full"):
        await ledger.record([history("job_a").submitted()])
    monkeypatch.setattr(store, "write", write)
    assert not ledger.live
    (record,) = await ledger.record([history("job_b").submitted()])
    assert record.submitted_seq == 1


async def test_a_write_the_database_refuses_does_not_fail_those_beside_it(ledger, history):
    job = history()
    await ledger.record([job.submitted(), *job.started()])
    absurd = Write([(_logged(job, 2, 2**70), None)])
    refused, accepted = await asyncio.gather(
        ledger.commit(absurd), ledger.record([history("job_b").submitted()]), return_exceptions=True
    )
    assert isinstance(refused, OverflowError)
    assert accepted[0].job_id == "job_b"


async def test_a_fault_in_showing_a_transaction_lets_nobody_believe_that_nothing_is_missing(
    ledger, store, history, monkeypatch
):
    job, shown = history("job_a"), hub.Group.take

    def broken(group, events):
        if unlucky in group.members:
            raise KeyError("a fault of ours")
        shown(group, events)

    await ledger.record([job.submitted()])
    with ledger._hub.subscribe("job_a") as lucky, ledger._hub.subscribe() as unlucky:
        monkeypatch.setattr(hub.Group, "take", broken)
        await ledger.record(job.started())
        assert ledger.upkeep.is_over
        assert ledger._hub.closing.is_set()
        assert [piece.to_seq async for piece in unlucky] == []
        assert {piece.to_seq async for piece in lucky} <= {ledger._hub.head}
    assert len(await store.events_of(Interest())) == 3
    with pytest.raises(Unavailable):
        await ledger.record([job.event(JobCompleted, n=2, result=DONE)])


async def test_after_the_end_nothing_is_accepted(store, history):
    ledger = Ledger(store, Hub())
    await ledger.open()
    await ledger.close()
    with pytest.raises(Unavailable):
        await ledger.record([history().submitted()])


# -- what counts


async def test_a_line_counts_once(ledger, store, history):
    job = history()
    line = _logged(job, 2, 10)
    await ledger.record([job.submitted(), *job.started(), line, line])
    await ledger.record([line])
    assert await store.event_count("job_a") == 4


async def test_nothing_behind_a_gap_counts_until_the_gap_is_filled(ledger, store, history):
    job = history()
    lines = [_logged(job, n, n * 10) for n in range(2, 6)]
    (*_, record) = await ledger.record([job.submitted(), *job.started(), lines[0], lines[2], lines[3]])
    assert record.recorded_n == 2
    (*_, record) = await ledger.record(lines[1:])
    assert record.recorded_n == 5
    stored = await store.events("job_a", types=frozenset({"metrics.logged"}))
    assert [events.decode_event(event.body).n for event in stored] == [2, 3, 4, 5]


async def test_an_older_attempt_says_nothing_more(ledger, store, history):
    job = history()
    await ledger.record([job.submitted(), *job.started(), job.event(events.JobInterrupted, 1, 2, cause="gone")])
    (record,) = await ledger.record([job.event(JobCompleted, 1, 3, result=DONE)])
    assert (record.status, record.attempt, record.recorded_n) == (Status.PENDING, 2, 0)
    assert await store.event_count("job_a") == 4


async def test_a_completion_that_crosses_a_cancel_counts_as_cancelled(ledger, store, history):
    job = history()
    await ledger.record([job.submitted(), *job.started(), job.event(events.CancelRequested)])
    (record,) = await ledger.record([job.event(JobCompleted, 1, 2, result=DONE)])
    assert (record.status, record.result) == (Status.CANCELLED, None)
    last = (await store.events("job_a"))[-1]
    assert last.type == "job.cancelled"
    assert events.decode_event(last.body).n == 2
    await ledger.record([job.event(JobCompleted, 1, 3, result=DONE)])
    assert (await ledger.job("job_a")).status is Status.CANCELLED


async def test_the_device_keeps_the_name_it_ran_under(ledger, history):
    job = history()
    await ledger.record([job.submitted(), *job.started()])
    (record,) = await ledger.record([job.event(JobCompleted, 1, 2, result=FinetuneResult(steps=30, device_name="?"))])
    assert record.device_name == "CPU"


async def test_a_line_that_does_not_fit_is_passed_over_and_the_next_one_counts(ledger, history):
    job = history()
    (*_, record) = await ledger.record(
        [job.submitted(), *job.started(), job.event(events.JobStarted, 1, 2, device="cpu"), _logged(job, 3, 10)]
    )
    assert (record.recorded_n, record.step) == (3, 10)


async def test_what_a_child_said_is_kept_byte_for_byte(quiet, history):
    job = history()
    await quiet.recorder.record([job.submitted(), job.started()[0]])
    said = b'{"type":"job.started", "job_id":"job_a","attempt":1, "at":"2026-01-01T00:00:00Z","n":1,"device":"cpu"}'
    await quiet.bus.publish([said])
    await quiet.until("job_a", lambda record: record.recorded_n == 1)
    assert (await quiet.store.events("job_a"))[-1].body == said


# -- series


async def test_a_value_that_is_no_number_is_null(ledger, store, history):
    job = history()
    logged = job.event(MetricsLogged, 1, 2, step=1, values={"train_loss": None}, not_finite={"train_loss": "nan"})
    (*_, record) = await ledger.record([job.submitted(), *job.started(), logged])
    assert await store.metrics("job_a") == {"train_loss": [(1, None, None)]}
    assert record.train_loss is None


async def _series_of_two_attempts(ledger, store, job, first, resumed, second):
    await ledger.record([job.submitted(), *job.started()])
    lines = [_logged(job, 2 + k, step, 1, **values) for k, (step, values) in enumerate(first)]
    await ledger.record([*lines, job.event(events.JobInterrupted, 1, 2 + len(lines), cause="killed")])
    await ledger.record([*job.started(attempt=2), job.event(TrainingResumed, 2, 2, step=resumed)])
    await ledger.record([_logged(job, 3 + k, step, 2, **values) for k, (step, values) in enumerate(second)])
    return {
        name: [(step, value) for step, _, value in points] for name, points in (await store.metrics("job_a")).items()
    }


async def test_a_resumed_run_leaves_the_series_of_an_uninterrupted_one(ledger, store, history):
    first = [(10, {"train_loss": 1.0}), (20, {"train_loss": 0.9}), (25, {"eval_loss": 0.7}), (30, {"train_loss": 0.8})]
    second = [(20, {"train_loss": 0.5}), (30, {"train_loss": 0.4}), (40, {"train_loss": 0.3})]
    series = await _series_of_two_attempts(ledger, store, history(), first, 15, second)
    assert series == {"train_loss": [(10, 1.0), (20, 0.5), (30, 0.4), (40, 0.3)]}


async def test_several_events_of_one_step_survive_a_resumption_there(ledger, store, history):
    first = [(10, {"train_loss": 1.0}), (20, {"train_loss": 0.9}), (20, {"eval_loss": 0.7})]
    series = await _series_of_two_attempts(ledger, store, history(), first, 20, [(30, {"train_loss": 0.5})])
    assert series == {"train_loss": [(10, 1.0), (20, 0.9), (30, 0.5)], "eval_loss": [(20, 0.7)]}


async def test_a_run_that_begins_again_from_nothing_repeats_everything(ledger, store, history):
    first = [(0, {"eval_loss": 2.0}), (10, {"train_loss": 1.0}), (13, {"eval_loss": 0.9})]
    second = [(0, {"eval_loss": 2.0}), (10, {"train_loss": 0.5})]
    series = await _series_of_two_attempts(ledger, store, history(), first, 0, second)
    assert series == {"eval_loss": [(0, 2.0)], "train_loss": [(10, 0.5)]}


async def test_a_resumption_in_the_transaction_of_what_it_voids_counts_too(ledger, store, history):
    job = history()
    await ledger.record(
        [
            *[job.submitted(), *job.started(), _logged(job, 2, 10, 1), _logged(job, 3, 17, 1)],
            *[job.event(events.JobInterrupted, 1, 4, cause="killed"), *job.started(attempt=2)],
            *[job.event(TrainingResumed, 2, 2, step=10), _logged(job, 3, 20, 2)],
        ]
    )
    assert [step for step, _, _ in (await store.metrics("job_a"))["train_loss"]] == [10, 20]


# -- the stream


async def test_progress_is_shown_and_not_stored(quiet, history):
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    with quiet.hub.subscribe("job_a") as news:
        await _publish(quiet, job.event(events.JobProgressed, step=3, total_steps=9, fraction=0.3))
        ((seq, name, _),) = (await anext(news)).items
    assert (seq, name) == (None, "job.progressed")
    assert (quiet.recorder.live["job_a"].step, quiet.recorder.live["job_a"].fraction) == (3, 0.3)
    assert await quiet.store.event_count("job_a") == 3


async def test_an_entry_nobody_can_read_is_put_aside_and_the_reader_goes_on(quiet, history):
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    await quiet.bus.publish([b"\xff garbage", b'{"type":"job.unheard"}', b"[" * 10_000])
    await quiet.bus._redis.xadd("training:events", {"another": "field"})
    await _publish(quiet, _logged(job, 2, 10))
    await quiet.until("job_a", lambda record: record.recorded_n == 2)
    letters = await quiet.store.dead_letters()
    assert [body[:20] for _, _, body in letters] == [b"\xff garbage", b'{"type":"job.unheard', b"[" * 20, b""]


async def test_an_entry_the_database_cannot_hold_is_put_aside_and_those_beside_it_count(quiet, history):
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    await _publish(quiet, _logged(job, 2, 10), _logged(job, 3, 2**70), job.event(events.PhaseEntered, 1, 4, phase="x"))
    record = await quiet.until("job_a", lambda record: record.recorded_n == 4)
    assert record.phase == "x"
    ((_, error, _),) = await quiet.store.dead_letters()
    assert "OverflowError" in error


@pytest.mark.parametrize(
    "said", ['"type":"job.unheard"', '"type":"metrics.logged","step":"x"', '"type":"job.failed","reason":"a new one"']
)
async def test_a_line_nobody_can_read_does_not_block_its_job(quiet, history, said):
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    line = f'{{{said},"job_id":"job_a","attempt":1,"at":"2026-01-01T00:00:00Z","n":2}}'
    await quiet.bus.publish([line.encode(), events.encode(_logged(job, 3, 10))])
    record = await quiet.until("job_a", lambda record: record.recorded_n == 3)
    assert record.step == 10


async def test_the_same_entry_is_put_aside_once(quiet, history):
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    await quiet.bus.publish([b"garbage", b"garbage"])
    await quiet.bus.publish([b"garbage", events.encode(_logged(job, 2, 10))])
    await quiet.until("job_a", lambda record: record.recorded_n == 2)
    assert len(await quiet.store.dead_letters()) == 1


async def test_dead_letters_do_not_grow_for_ever(quiet, history, monkeypatch):
    monkeypatch.setattr("service.store._DEAD_LETTERS_KEPT", 3)
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    await quiet.bus.publish([*[b"garbage %d" % k for k in range(8)], events.encode(_logged(job, 2, 10))])
    await quiet.until("job_a", lambda record: record.recorded_n == 2)
    assert len(await quiet.store.dead_letters()) == 3


async def test_a_restart_loses_nothing(core_at, history):
    job, waiting = history("job_a"), history("job_b")
    async with core_at(sleepy=True) as core:
        await core.recorder.record([job.submitted(), waiting.submitted(), *job.started()])
        await _publish(core, _logged(job, 2, 10))
        before = await core.until("job_a", lambda record: record.recorded_n == 2)
        bus_url = core.settings.redis_url
    bus = streams.connect(bus_url)
    await bus.publish([events.encode(_logged(job, 3, 20))])  # said while nobody listened
    await bus.close()
    async with core_at(sleepy=True) as core:
        assert list(core.recorder.live) == ["job_a", "job_b"]
        after = await core.until("job_a", lambda record: record.recorded_n == 3)
        assert (after.status, after.attempt, after.started_at) == (Status.RUNNING, 1, before.started_at)
        assert await core.store.event_count("job_a") == 5


async def test_another_epoch_means_reading_from_the_beginning(core_at, history, wiped):
    job = history()
    async with core_at(sleepy=True) as core:
        await core.recorder.record([job.submitted(), *job.started()])
        await _publish(core, _logged(job, 2, 10))
        await core.until("job_a", lambda record: record.recorded_n == 2)
        url = core.settings.redis_url
    wiped()
    bus = streams.connect(url)
    await bus._redis.xadd("training:events", {"m": events.encode(_logged(job, 3, 20))}, id="0-1")  # a clock set back
    await bus.close()
    async with core_at(sleepy=True) as core:
        record = await core.until("job_a", lambda record: record.recorded_n == 3)
        assert record.step == 20


async def test_the_stream_is_trimmed_by_what_was_recorded(quiet, history):
    job = history()
    await quiet.recorder.record([job.submitted(), *job.started()])
    await _publish(quiet, *[_logged(job, n, n) for n in range(2, 12)])
    await quiet.until("job_a", lambda record: record.recorded_n == 11)
    await quiet.recorder.tidy()
    assert await quiet.bus.read_events("0-0", block_s=0.01) == []
    await _publish(quiet, _logged(job, 12, 12))
    await quiet.until("job_a", lambda record: record.recorded_n == 12)
    assert (await quiet.store.position()).epoch == await quiet.bus.epoch()


async def test_redis_may_be_away_at_submit_and_come_back(core_at, training, tmp_path, soon, history):
    server = Settings(data_root=str(tmp_path / "server"))
    async with core_at(redis_url=redis_server.address(server)) as core:
        await soon(lambda: core.recorder.is_redis_lost)
        submitted = await core.dispatch.submit(training)
        assert submitted.status is Status.PENDING
        waiting = await core.until(submitted.job_id, lambda record: record.waiting_reason is not None)
        assert "Redis" in waiting.waiting_reason
        redis_server.ensure(server)
        try:
            await core.until(submitted.job_id, lambda record: "No runner" in (record.waiting_reason or ""))
            job = history(submitted.job_id)
            await core.recorder.record([job.started()[0]])
            await _publish(core, job.started()[1])
            assert (await core.until(submitted.job_id, lambda record: record.recorded_n == 1)).status == "running"
        finally:
            redis_server.stop(server)


async def test_reports_are_remembered_and_their_runners_forgotten_at_a_new_boot(quiet, soon):
    def report(boot, *held):
        return events.RunnerReported(
            runner_id="r", boot=boot, at=datetime.now(UTC), devices=(), held=tuple(held), version="1"
        )

    held = events.Held(job_id="j", attempt=1, state="running", last_n=4)
    await quiet.bus.publish([events.encode(report("one", held))])
    await soon(lambda: "r" in quiet.recorder.runners)
    heard = asyncio.ensure_future(quiet.recorder.next_report())
    await asyncio.sleep(0)
    await quiet.bus.publish([events.encode(report("one"))])
    await heard
    view = quiet.recorder.runners["r"]
    assert view.alive
    assert view.held("j", 1) is None
    assert view.held_before("j", 1) == held
    await quiet.bus.publish([events.encode(report("two"))])
    await soon(lambda: quiet.recorder.runners["r"].report.boot == "two")
    assert quiet.recorder.runners["r"].previous is None


async def test_a_report_that_lay_in_the_stream_for_long_is_no_sign_of_life(quiet, soon):
    said = events.RunnerReported(runner_id="r", boot="b", at=datetime.now(UTC), devices=(), held=())
    reached = await soon(lambda: quiet.recorder.up_since)
    long_ago = int((await quiet.bus.clock_s() - 60) * 1000)
    await quiet.bus._redis.xadd("training:events", {"m": events.encode(said)}, id=f"{long_ago}-0")
    await soon(lambda: "r" in quiet.recorder.runners)
    assert not quiet.recorder.runners["r"].alive
    assert quiet.recorder.up_since > reached, "a runner is silent only once the stream is read to its end"
    await _publish(quiet, said)
    await soon(lambda: quiet.recorder.runners["r"].alive)


# -- the journal on the disk


async def test_what_a_lost_runner_did_not_send_is_read_from_its_journal(quiet, history):
    job = history()
    record = (await quiet.recorder.record([job.submitted(), *job.started()]))[-1]
    lines = [job.started()[1], _logged(job, 2, 10), job.event(JobCompleted, 1, 3, result=DONE)]
    folder = quiet.root.attempt("job_a", 1)
    folder.folder.mkdir(parents=True)
    folder.journal.write_bytes(b"".join(events.encode(line) + b"\n" for line in lines) + b'{"torn')
    await quiet.recorder.catch_up(record)
    ended = await quiet.recorder.job("job_a")
    assert (ended.status, ended.recorded_n, ended.result) == (Status.COMPLETED, 3, DONE)


async def test_a_missing_or_broken_journal_is_no_error(quiet, history):
    job = history()
    record = (await quiet.recorder.record([job.submitted(), *job.started()]))[-1]
    await quiet.recorder.catch_up(record)
    folder = quiet.root.attempt("job_a", 1)
    folder.folder.mkdir(parents=True)
    lines = [b"{}", events.encode(_logged(job, 2, 10)), b"nonsense", events.encode(_logged(job, 4, 2**70))]
    lines.append(events.encode(_logged(job, 5, 20)))
    folder.journal.write_bytes(b"".join(line + b"\n" for line in lines))
    await quiet.recorder.catch_up(record)
    caught_up = await quiet.recorder.job("job_a")
    assert (caught_up.recorded_n, caught_up.step) == (5, 20)
    assert [body for _, _, body in await quiet.store.dead_letters()] == lines[2:4]


# -- deleting


async def test_only_what_has_ended_is_deleted(quiet, history, training):
    job = history()
    await quiet.recorder.record([job.submitted()])
    with pytest.raises(WrongState):
        await quiet.recorder.delete("job_a")
    await quiet.recorder.record([job.event(events.JobCancelled)])
    await quiet.recorder.delete("job_a")
    assert await quiet.recorder.job("job_a") is None
    with pytest.raises(UnknownExport):
        await quiet.recorder.delete_export("job_a")


async def test_a_job_that_should_be_there_is_known_or_refused(quiet, history):
    (record,) = await quiet.recorder.record([history().submitted()])
    assert await quiet.recorder.known("job_a") == record
    with pytest.raises(UnknownJob):
        await quiet.recorder.known("job_b")
