"""What is stated and sent: the pure decision with clocks of its own, and the loop with a runner on a real Redis."""

import asyncio
import time
from datetime import UTC, datetime

import msgspec
import pytest

from jobs import events
from jobs.commands import Cancel, Pause, Resend, Start
from jobs.errors import FailureReason
from jobs.events import Device, Held, RunnerReported
from jobs.lifecycle import Status
from jobs.results import FinetuneResult
from jobs.settings import Settings
from jobs.specs import FinetuneSpec, Kind, Slot, ValidateSpec
from jobs.training_config import TrainingConfig
from service.occupancy import rooms
from service.placement import NO_RUNNER, TOO_LARGE_FOR_CPU
from service.reconcile import REDIS_AWAY, Asks, CatchUp, Send, Situation, State, decide
from service.records import JobRecord, RunnerView

AT = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(lease_s=15, max_attempts=3)
CPU = Device(device_id="cpu", name="CPU", slots={Slot.CPU: 2, Slot.GPU: 1})
TRAINING = FinetuneSpec(config=TrainingConfig(model_name="demo-llava", train_data_path="d"))
NOW = 1000.0


def _job(job_id="j", **fields):
    known = {"spec": TRAINING, "submitted_at": AT, "updated_at": AT, "submitted_seq": 1, "last_seq": 1}
    return JobRecord(job_id=job_id, **known | fields)


def _on_runner(status=Status.RUNNING, **fields):
    return _job(status=status, **{"runner_id": "r", "device": "cpu"} | fields)


def _view(*held, before=(), heard_at=NOW, runner_id="r", devices=(CPU,), stopping=False):
    def report(attempts):
        return RunnerReported(
            runner_id=runner_id, boot="b", at=AT, devices=devices, held=tuple(attempts), stopping=stopping
        )

    return RunnerView(report=report(held), previous=report(before), heard_at=heard_at, lease_s=15)


def _held(job_id="j", attempt=1, state="running", last_n=0):
    return Held(job_id=job_id, attempt=attempt, state=state, last_n=last_n)


def _decide(jobs, views=(), *, up_since=0.0, now=NOW, **more):
    situation = Situation(
        jobs={job.job_id: job for job in jobs},
        runners={view.runner_id: view for view in views},
        now=now,
        at=AT,
        up_since=up_since,
        **more,
    )
    return decide(situation, SETTINGS)


def _stated(actions):
    return [action.event for action in actions if isinstance(action, State)]


def _sent(actions):
    return [action.command for action in actions if isinstance(action, Send)]


# -- placing


def test_a_pending_job_is_placed_where_there_is_a_slot():
    (placed,) = _stated(_decide([_job()], [_view()]))
    assert placed == events.JobPlaced(job_id="j", attempt=1, at=AT, runner_id="r", device="cpu")


def test_a_reason_for_waiting_is_stated_once():
    (waiting,) = _stated(_decide([_job()]))
    assert waiting == events.JobWaiting(job_id="j", attempt=1, at=AT, reason=NO_RUNNER)
    assert _decide([_job(waiting_reason=NO_RUNNER)]) == []


def test_a_stopping_or_silent_runner_gets_nothing_new():
    for view in (_view(stopping=True), _view(heard_at=NOW - 16)):
        assert [event.reason for event in _stated(_decide([_job()], [view]))] == [NO_RUNNER]


def test_a_large_model_waits_for_a_cuda_device():
    (waiting,) = _stated(_decide([_job()], [_view()], asks={"j": Asks(TOO_LARGE_FOR_CPU)}))
    assert waiting.reason == TOO_LARGE_FOR_CPU


def test_nothing_is_placed_while_redis_is_away_and_the_job_says_so():
    (waiting,) = _stated(_decide([_job()], [_view()], up_since=None, is_redis_lost=True))
    assert waiting.reason == REDIS_AWAY
    assert _decide([_job()], [_view()], up_since=None, is_redis_lost=False) == []


def test_jobs_placed_on_a_device_count_though_no_report_shows_them():
    placed = _on_runner(Status.QUEUED, job_id="a")
    actions = _decide([placed, _job("b")], [_view()])
    assert [type(event) for event in _stated(actions)] == [events.JobWaiting]


def test_an_attempt_the_runner_still_ends_keeps_its_slot():
    (room,) = rooms([_view(_held("gone"))], {}, AT)
    assert room.free == {Slot.CPU: 1, Slot.GPU: 0}
    (room,) = rooms([_view(_held("gone", state="finished"))], {}, AT)
    assert room.free == CPU.slots


def test_data_work_does_not_take_the_slot_of_a_model():
    data = _on_runner(job_id="a", spec=ValidateSpec(data_path="d"))
    actions = _decide([data, _job("b")], [_view(_held("a"))])
    assert [type(event) for event in _stated(actions)] == [events.JobPlaced]


# -- what a runner should do


def test_a_start_is_repeated_until_a_report_shows_the_attempt():
    for status in (Status.QUEUED, Status.RUNNING):
        job = _on_runner(status)
        assert Start(job_id="j", attempt=1, spec=TRAINING, device="cpu") in _sent(_decide([job], [_view()]))
        assert _sent(_decide([job], [_view(_held())])) == []


def test_a_running_attempt_nobody_reports_is_looked_up_on_the_disk():
    job = _on_runner(Status.RUNNING)
    assert CatchUp(job) in _decide([job], [_view()])
    assert CatchUp(job) not in _decide([job], [_view(_held())])
    assert CatchUp(_on_runner(Status.QUEUED)) not in _decide([_on_runner(Status.QUEUED)], [_view()])


def test_a_cancel_is_repeated_while_the_attempt_runs():
    job = _on_runner(cancel_requested_at=AT)
    assert _sent(_decide([job], [_view(_held())])) == [Cancel(job_id="j", attempt=1)]


def test_a_cancel_of_an_attempt_whose_start_was_lost_starts_it_to_end_it():
    job = _on_runner(Status.QUEUED, cancel_requested_at=AT)
    assert [type(command) for command in _sent(_decide([job], [_view()]))] == [Start, Cancel]


def test_a_finished_attempt_is_held_until_its_last_line_is_recorded():
    job = _on_runner(cancel_requested_at=AT, recorded_n=3)
    finished = _held(state="finished", last_n=5)
    assert _sent(_decide([job], [_view(finished)])) == []
    assert _sent(_decide([job], [_view(finished, before=[finished])])) == [Resend(job_id="j", attempt=1, from_n=4)]


def test_a_pause_is_passed_on_and_a_cancel_wins_over_it():
    job = _on_runner(pause_requested_at=AT)
    assert _sent(_decide([job], [_view(_held())])) == [Pause(job_id="j", attempt=1)]
    both = _on_runner(pause_requested_at=AT, cancel_requested_at=AT)
    assert _sent(_decide([both], [_view(_held())])) == [Cancel(job_id="j", attempt=1)]


@pytest.mark.parametrize(
    ("recorded", "before", "now", "expected"),
    [
        (3, 3, 5, []),  # on their way
        (3, 5, 5, [4]),  # two reports spoke of them
        (4, 5, 9, [5]),
        (5, 5, 5, []),
        (9, 5, 5, []),  # the lines came before the report
    ],
)
def test_lines_are_asked_for_when_two_reports_spoke_of_them(recorded, before, now, expected):
    job = _on_runner(recorded_n=recorded)
    view = _view(_held(last_n=now), before=[_held(last_n=before)])
    assert [command.from_n for command in _sent(_decide([job], [view])) if isinstance(command, Resend)] == expected


def test_attempts_nobody_wants_are_ended():
    current, older, deleted = _held(attempt=2), _held(attempt=1), _held("gone")
    job = _on_runner(attempt=2)
    assert _sent(_decide([job], [_view(current, older, deleted)])) == [
        Cancel(job_id="j", attempt=1),
        Cancel(job_id="gone", attempt=1),
    ]


def test_a_paused_attempt_is_put_away_when_its_lines_are_recorded():
    finished = _held(state="finished", last_n=5)
    assert _sent(_decide([_job(status=Status.PAUSED, recorded_n=4)], [_view(finished)])) == []
    paused = _job(status=Status.PAUSED, recorded_n=5)
    assert _sent(_decide([paused], [_view(finished)])) == [Cancel(job_id="j", attempt=1)]


# -- ends the service states


def test_an_attempt_that_is_over_without_an_end_anybody_could_record_fails():
    job = _on_runner(recorded_n=5)
    (failed,) = _decide([job], [_view(_held(state="finished", last_n=5))])
    assert failed.event.reason is FailureReason.INTERNAL
    assert "events.jsonl" in failed.event.detail
    assert _decide([job], [_view(_held(state="running", last_n=5))]) == []
    asked = _on_runner(recorded_n=5, cancel_requested_at=AT)
    assert _decide([asked], [_view(_held(state="finished", last_n=5))]) == [
        State(events.JobCancelled(job_id="j", attempt=1, at=AT))
    ]


@pytest.mark.parametrize("status", [Status.PENDING, Status.PAUSED])
def test_a_cancelled_job_without_a_runner_is_ended_by_the_service(status):
    job = _job(status=status, cancel_requested_at=AT)
    assert _stated(_decide([job], [_view()])) == [events.JobCancelled(job_id="j", attempt=1, at=AT)]


def test_a_job_interrupted_too_often_fails_and_one_less_is_placed_again():
    job = _job(attempt=4, interruptions=3, waiting_reason="The process died.")
    (failed,) = _stated(_decide([job], [_view()]))
    assert (failed.reason, failed.attempt) == (FailureReason.TOO_MANY_ATTEMPTS, 4)
    assert "3 times" in failed.detail
    assert "The process died." in failed.detail
    (placed,) = _stated(_decide([_job(attempt=3, interruptions=2)], [_view()]))
    assert isinstance(placed, events.JobPlaced)


def test_a_paused_job_does_not_fail_for_its_interruptions():
    assert _decide([_job(status=Status.PAUSED, interruptions=3)], [_view()]) == []


@pytest.mark.parametrize(
    ("heard_at", "up_since", "is_lost"),
    [
        (NOW - 14, 0, False),
        (NOW - 16, 0, True),
        (NOW - 60, NOW - 14, False),  # the service or Redis came back 14 s ago
        (NOW - 60, NOW - 16, True),
        (None, NOW - 14, False),  # not heard since the service started
        (None, NOW - 16, True),
        (NOW - 60, None, False),  # Redis is away: nobody can be heard
    ],
)
def test_a_runner_is_lost_after_a_lease_in_which_it_could_have_been_heard(heard_at, up_since, is_lost):
    job = _on_runner()
    views = [] if heard_at is None else [_view(_held(), heard_at=heard_at)]
    actions = _decide([job], views, up_since=up_since)
    lost = [event for event in _stated(actions) if isinstance(event, events.JobInterrupted)]
    assert bool(lost) is is_lost
    assert (CatchUp(job) in actions) is is_lost


def test_a_lost_runner_is_told_nothing():
    assert _sent(_decide([_on_runner(cancel_requested_at=AT)], [_view(_held("gone"), heard_at=NOW - 16)])) == []


# -- the loop


def _serve(core, fakes, **options):
    return fakes.FakeRunner(core.settings.redis_url, **options)


async def test_a_job_is_placed_started_and_completed(core, fakes, training):
    async with _serve(core, fakes):
        job = await core.dispatch.submit(training)
        record = await core.ended(job.job_id)
    assert (record.status, record.runner_id, record.device) == (Status.COMPLETED, "fake", "cpu")
    stored = [event.type for event in await core.store.events(job.job_id)]
    assert [type_ for type_ in stored if type_ != "job.waiting"] == [  # it waits for the first report
        "job.submitted", "job.placed", "job.started", "job.completed",
    ]  # fmt: skip


async def test_jobs_beyond_the_slots_wait_and_run_later(core, fakes, training):
    async with _serve(core, fakes, devices=(CPU,)) as runner:
        runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
        first, second = [await core.dispatch.submit(training) for _ in range(2)]
        await core.until(first.job_id, lambda record: record.status is Status.RUNNING)
        waiting = await core.until(second.job_id, lambda record: record.waiting_reason)
        assert "Every place is taken" in waiting.waiting_reason
        await core.dispatch.cancel(first.job_id)
        assert (await core.ended(first.job_id)).status is Status.CANCELLED
        await core.until(second.job_id, lambda record: record.status is Status.RUNNING)


async def test_flushing_redis_in_the_middle_loses_nothing(core, fakes, training, wiped):
    half, whole = asyncio.Event(), asyncio.Event()

    async def long(attempt):
        await attempt.begin()
        for step in range(1, 61):
            await attempt.say(events.MetricsLogged, step=step, values={"train_loss": 1 / step})
            if step == 30:
                half.set()
                await whole.wait()
        await attempt.complete(FinetuneResult(steps=60))

    async with _serve(core, fakes) as runner:
        runner.scripts[Kind.FINETUNE] = long
        job = await core.dispatch.submit(training)
        await half.wait()
        wiped()
        whole.set()
        attempt = runner.attempts[job.job_id, 1]
        while attempt.state != "finished":
            wiped()  # again and again, while it speaks
            await asyncio.sleep(0.005)
        record = await core.ended(job.job_id)
    assert (record.status, record.recorded_n) == (Status.COMPLETED, 62)
    assert [step for step, _, _ in (await core.store.metrics(job.job_id))["train_loss"]] == list(range(1, 61))


@pytest.mark.parametrize("redis_is_lost_too", [False, True])
async def test_a_service_that_was_stopped_while_jobs_train_loses_no_point(
    core_at, fakes, training, redis_url, wiped, redis_is_lost_too
):
    steps, going_on = 200, asyncio.Event()

    async def long(attempt):
        await attempt.begin()
        for step in range(1, steps + 1):
            await attempt.say(events.MetricsLogged, step=step, values={"train_loss": 1 / step})
            if step == 20:
                await going_on.wait()
            await asyncio.sleep(0.002)
        await attempt.complete(FinetuneResult(steps=steps))

    async with fakes.FakeRunner(redis_url) as runner:
        runner.scripts[Kind.FINETUNE] = long
        async with core_at() as core:
            jobs = [await core.dispatch.submit(training) for _ in range(3)]
            for job in jobs:
                await core.until(job.job_id, lambda record: record.step == 20)
        going_on.set()
        await asyncio.sleep(0.3)
        if redis_is_lost_too:
            wiped()
        await asyncio.sleep(0.5)  # the service is away, and they train on
        async with core_at() as core:
            for job in jobs:
                record = await core.ended(job.job_id)
                assert (record.status, record.attempt, record.recorded_n) == (Status.COMPLETED, 1, steps + 2)
                points = (await core.store.metrics(job.job_id))["train_loss"]
                assert [step for step, _, _ in points] == list(range(1, steps + 1))
                assert len(await core.store.events(job.job_id, types=frozenset({"metrics.logged"}))) == steps


async def test_a_runner_that_falls_silent_loses_its_job_to_another_which_goes_on(core_at, fakes, training):
    async with core_at(lease_s=0.6) as core:
        async with _serve(core, fakes, name="first") as runner:
            runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
            job = await core.dispatch.submit(training)
            await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
        pending = await core.until(job.job_id, lambda record: record.attempt == 2)
        assert (pending.status, pending.interruptions, pending.runner_id) == (Status.PENDING, 1, None)
        async with _serve(core, fakes, name="second"):
            record = await core.ended(job.job_id)
    assert (record.status, record.attempt, record.runner_id) == (Status.COMPLETED, 2, "second")


async def test_a_service_that_stood_still_does_not_blame_the_runners(core_at, fakes, training):
    async with core_at(lease_s=0.6) as core, _serve(core, fakes) as runner:
        runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
        job = await core.dispatch.submit(training)
        await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
        time.sleep(1)  # noqa: ASYNC251  the whole process is to hang
        await core.reconciler.run()
        await core.recorder.next_report()
        assert core.recorder.live[job.job_id].attempt == 1


async def test_what_a_lost_runner_wrote_before_it_died_is_not_lost(core_at, fakes, training):
    async with core_at(lease_s=0.6) as core:
        async with _serve(core, fakes) as runner:
            runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
            job = await core.dispatch.submit(training)
            await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
            attempt = runner.attempts[job.job_id, 1]
        said = events.MetricsLogged(job_id=job.job_id, attempt=1, at=AT, n=2, step=5, values={"train_loss": 0.5})
        folder = core.root.attempt(job.job_id, 1)
        folder.folder.mkdir(parents=True)
        folder.journal.write_bytes(attempt.journal[0] + b"\n" + events.encode(said) + b"\n")
        await core.until(job.job_id, lambda record: record.attempt == 2)
        assert await core.store.metrics(job.job_id) == {"train_loss": [(5, None, 0.5)]}


async def test_what_is_wrong_with_one_job_keeps_no_other_waiting(core_at, soon):
    async with core_at(sleepy=True, lease_s=0.1, report_every_s=30) as core:
        jobs = [(await core.running()).job_id for _ in range(3)]
        unreadable, absurd = [core.root.attempt(job_id, 1) for job_id in jobs[:2]]
        unreadable.journal.mkdir(parents=True)  # reading it raises OSError
        absurd.folder.mkdir(parents=True)
        said = events.MetricsLogged(job_id=jobs[1], attempt=1, at=AT, n=2, step=2**70, values={"train_loss": 1})
        absurd.journal.write_bytes(b"{}\n" + events.encode(said) + b"\n")
        await soon(lambda: core.recorder.up_since and time.monotonic() > core.recorder.up_since + 0.1)
        await core.reconciler.run()
        assert [core.recorder.live[job_id].attempt for job_id in jobs] == [2, 2, 2]


async def test_a_job_whose_last_line_nobody_can_read_ends(core, fakes, training):
    async def ends_strangely(attempt):
        await attempt.begin()
        line = events.encode(events.JobCompleted(n=2, result=FinetuneResult(steps=1), **attempt._envelope()))
        attempt.journal.append(line.replace(b"job.completed", b"job.perfected"))
        attempt.state = "finished"
        await core.bus.publish(attempt.journal[-1:])

    async with _serve(core, fakes) as runner:
        runner.scripts[Kind.FINETUNE] = ends_strangely
        job = await core.dispatch.submit(training)
        record = await core.ended(job.job_id)
    assert (record.status, record.failure_reason) == (Status.FAILED, FailureReason.INTERNAL)
    assert len(await core.store.dead_letters()) == 1


async def test_an_accepted_pause_holds_through_an_interruption(core, fakes, training):
    async def dies_once(attempt):
        await attempt.begin()
        await attempt.paused.wait()
        if attempt.start.attempt == 1:
            await attempt.say(events.JobInterrupted, cause="The process was killed.")
        else:
            await attempt.say(events.JobPaused, step=3)

    async with _serve(core, fakes) as runner:
        runner.scripts[Kind.FINETUNE] = dies_once
        job = await core.dispatch.submit(training)
        await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
        await core.dispatch.pause(job.job_id)
        record = await core.until(job.job_id, lambda record: record.status is Status.PAUSED)
    assert (record.attempt, record.pause_requested_at) == (2, None)


async def test_a_job_that_dies_again_and_again_fails_and_the_next_one_runs(core_at, fakes, training):
    async def dies(attempt):
        await attempt.begin()
        await attempt.say(events.JobInterrupted, cause="The process was killed.")

    async with core_at(max_attempts=2) as core, _serve(core, fakes) as runner:
        runner.scripts[Kind.FINETUNE] = dies
        poison = await core.dispatch.submit(training)
        record = await core.ended(poison.job_id)
        assert (record.status, record.failure_reason) == (Status.FAILED, FailureReason.TOO_MANY_ATTEMPTS)
        assert record.interruptions == 2
        runner.scripts.clear()
        good = await core.dispatch.submit(training)
        assert (await core.ended(good.job_id)).status is Status.COMPLETED


async def test_running_jobs_go_on_through_a_restart_of_the_service(core_at, fakes, training):
    go_on = asyncio.Event()

    async def slow(attempt):
        await attempt.begin()
        await go_on.wait()
        await attempt.say(events.MetricsLogged, step=1, values={"train_loss": 0.5})
        await attempt.complete()

    async with core_at() as core:
        runner = await _serve(core, fakes).__aenter__()
        runner.scripts[Kind.FINETUNE] = slow
        job = await core.dispatch.submit(training)
        await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
    go_on.set()
    async with core_at() as core:
        record = await core.ended(job.job_id)
        await runner.__aexit__()
    assert (record.status, record.attempt, record.recorded_n) == (Status.COMPLETED, 1, 3)


async def test_a_runner_forgets_an_attempt_once_it_is_recorded(core, fakes, training, soon):
    async with _serve(core, fakes) as runner:
        job = await core.dispatch.submit(training)
        await core.ended(job.job_id)
        await soon(lambda: not runner.attempts)


async def test_a_command_is_not_repeated_before_a_report_can_show_its_effect(core_at, training, soon):
    async with core_at(report_every_s=30) as core:
        report = RunnerReported(runner_id="r", boot="b", at=AT, devices=(CPU,), held=())
        await core.bus.publish([events.encode(report)])
        await soon(lambda: core.recorder.runners)
        job = await core.dispatch.submit(training)
        await core.until(job.job_id, lambda record: record.status is Status.QUEUED)
        for _ in range(3):
            await core.reconciler.run()
        _, sent = await core.bus.read_commands("r", "0-0", block_s=0.01)
    assert [msgspec.structs.asdict(command)["job_id"] for command in sent] == [job.job_id]


async def test_a_higher_priority_pauses_a_preemptible_training_which_goes_on_by_itself(core, fakes, configured):
    async def saves(attempt):
        await attempt.begin()
        if attempt.start.attempt == 1 and attempt.spec.config.preemptible:
            await attempt.paused.wait()
            return await attempt.say(events.JobPaused, step=3)
        return await attempt.complete()

    async with _serve(core, fakes, devices=(CPU,)) as runner:
        runner.scripts[Kind.FINETUNE] = saves
        long = await core.dispatch.submit(configured(preemptible=True))
        await core.until(long.job_id, lambda record: record.status is Status.RUNNING)
        urgent = await core.dispatch.submit(configured(priority=1))
        assert (await core.ended(urgent.job_id)).status is Status.COMPLETED
        record = await core.ended(long.job_id)
    assert (record.status, record.attempt, record.interruptions, record.preempted_by) == (Status.COMPLETED, 2, 0, None)
    stored = [event.type for event in await core.store.events(long.job_id)]
    assert stored.count("job.pause_requested") == stored.count("job.resume_requested") == 1


async def test_the_queue_tells_places_and_reasons(core, configured):
    low, high = [await core.dispatch.submit(configured(priority=priority)) for priority in (0, 1)]
    found = await core.reconciler.queue()
    assert [(each.job.job_id, each.position, each.reason) for each in found] == [
        (high.job_id, 1, NO_RUNNER),
        (low.job_id, 2, NO_RUNNER),
    ]
    assert found[0].needs.cpu is not None  # the demo model's dimensions are known
