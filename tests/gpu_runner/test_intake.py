"""Commands may be lost, doubled and late; what a runner holds is true all the same."""

import threading

import redis
import redis.asyncio

from gpu_runner import attempts, journal
from jobs import commands, events


async def test_a_start_is_ignored_while_held_and_when_finished(front) -> None:
    job_id = await front.start("sleep=0.2")
    await front.start("complete", job_id=job_id)
    await front.end(job_id)
    await front.start("complete", job_id=job_id)
    await front.end(await front.start("complete"))
    assert sum(isinstance(e, events.JobStarted) and e.job_id == job_id for e, _ in front.heard) == 1
    assert b"sleep=0.2" in front.attempt(job_id).start.read_bytes()


async def test_a_cancel_lets_a_finished_attempt_go_and_a_late_start_holds_it_again(front) -> None:
    job_id = await front.start("complete")
    await front.held(job_id, "finished")
    assert front.locks() == [f"{job_id}.1.lock"]
    await front.cancel(job_id)
    await front.reported(lambda report: not report.held)
    assert front.locks() == []
    before = front.journal(job_id)
    await front.start("complete", job_id=job_id)
    assert (await front.held(job_id, "finished")).last_n == len(before)
    assert front.journal(job_id) == before


async def test_a_start_for_a_journal_without_an_end_is_reported_as_interrupted(front) -> None:
    folder = front.attempt("orphan-1")
    folder.folder.mkdir(parents=True)
    journal.Journal(front.root, folder, "orphan-1").phase("loading")
    await front.start("complete", job_id="orphan-1")
    assert (await front.held("orphan-1", "finished")).last_n == 2
    assert isinstance(journal.last_event(folder.journal), events.JobInterrupted)


async def test_a_resend_repeats_the_journal_from_that_line(front) -> None:
    job_id = await front.start("lines=5")
    await front.end(job_id)
    await front.held(job_id, "finished")
    everything = front.journal(job_id)
    await front.send(commands.Resend(job_id=job_id, attempt=1, from_n=4))
    await front.until(lambda: len(front.lines(job_id)) == len(everything) + 4)
    assert front.lines(job_id) == everything + everything[3:]


async def test_commands_about_unknown_attempts_change_nothing(front) -> None:
    about = {"job_id": "nobody", "attempt": 3}
    await front.send(commands.Cancel(**about), commands.Pause(**about), commands.Resend(from_n=1, **about))
    assert isinstance(await front.end(await front.start("complete")), events.JobCompleted)


async def test_an_attempt_that_cannot_be_written_down_is_taken_when_the_start_is_repeated(front) -> None:
    blocker = front.root.job("blocked-1")
    blocker.parent.mkdir(parents=True)
    blocker.write_text("a file where a folder should be")
    await front.start("complete", job_id="blocked-1")
    await front.end(await front.start("complete"))
    assert "blocked-1" not in {held.job_id for held in front.reports[-1].held}
    blocker.unlink()
    await front.start("complete", job_id="blocked-1")
    await front.held("blocked-1", "finished")


async def test_an_attempt_is_neither_reported_nor_queued_before_it_is_written_down(front, monkeypatch) -> None:
    may_write, write = threading.Event(), attempts._write_start

    def write_slowly(*about: object) -> None:
        may_write.wait(10)
        write(*about)

    monkeypatch.setattr(attempts, "_write_start", write_slowly)
    job_id = await front.start("complete", slot="gpu")
    before = len(front.reports)
    await front.until(lambda: len(front.reports) >= before + 3)
    assert not any(report.held for report in front.reports)
    may_write.set()
    assert isinstance(await front.end(job_id), events.JobCompleted)


async def test_queued_jobs_survive_a_redis_that_is_wiped(front, redis_url) -> None:
    blocking = await front.start("sleep", slot="gpu")
    await front.event(blocking, events.PhaseEntered)
    waiting = [await front.start("complete", slot="gpu") for _ in range(3)]
    for job_id in waiting:
        await front.held(job_id, "queued")
    redis.Redis.from_url(redis_url).flushall()
    await front.reported(lambda report: len(report.held) == 4)
    await front.cancel(blocking)
    for job_id in waiting:
        await front.held(job_id, "finished")
        assert isinstance(journal.last_event(front.attempt(job_id).journal), events.JobCompleted)


async def test_a_start_that_arq_lost_halfway_is_found_again(front, redis_url) -> None:
    blocking = await front.start("sleep=0.5", slot="gpu")
    await front.event(blocking, events.PhaseEntered)
    waiting = await front.start("complete", slot="gpu")
    await front.held(waiting, "queued")
    client = redis.asyncio.Redis.from_url(redis_url)
    await client.set(f"arq:in-progress:{waiting}:1", b"1", px=10**9)
    await client.aclose()
    assert isinstance(await front.end(waiting), events.JobCompleted)
