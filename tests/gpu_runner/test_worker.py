"""The runner as a program: its own death, the death of Redis, and how it leaves."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from gpu_runner import journal, processes
from gpu_runner.worker import preload
from jobs import events


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 20)


async def ready(front) -> events.RunnerReported:
    """The first report of a runner that was not there before."""
    before = {report.boot for report in front.reports}
    return await front.until(lambda: next((r for r in front.reports if r.boot not in before), None))


async def settled(look: Callable[[], object], within_s: float = 10) -> None:
    """Until nothing is found: strangers' processes do not say when they end."""
    deadline = time.monotonic() + within_s
    while found := look():
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)


async def test_a_killed_runner_leaves_no_process_and_its_successor_interrupts_its_jobs(
    listener, program, living
) -> None:
    first = program()
    boot = (await ready(listener)).boot
    running = await listener.start("deaf", slot="gpu")
    fled = await listener.start("escape")
    await listener.event(running, events.PhaseEntered)
    await listener.event(fled, events.JobNoted)
    waiting = await listener.start("complete", slot="gpu")
    await listener.held(waiting, "queued")
    first.kill()
    await ended(first)
    program()
    report = await ready(listener)
    assert report.boot != boot
    for job_id in (running, fled, waiting):
        interrupted = await listener.end(job_id)
        assert isinstance(interrupted, events.JobInterrupted)
        assert interrupted.cause == "the runner was restarted"
        assert listener.lines(job_id) == listener.journal(job_id)
        await listener.held(job_id, "finished")
    await settled(
        lambda: [
            command for command in living().values() if command.count("toy_runner") == 0 and "zygote" not in command
        ]
    )
    last = await listener.start("complete")
    assert isinstance(await listener.end(last), events.JobCompleted)
    await listener.held(last, "finished")  # a child looks like the zygote it was forked from
    assert sum("gpu_runner.zygote" in command for command in living().values()) == 1


async def test_survivors_of_a_killed_runner_and_zygote_are_ended_by_the_successor(listener, program, living) -> None:
    first = program()
    await ready(listener)
    job_id = await listener.start("escape")
    fled = int((await listener.event(job_id, events.JobNoted)).message)
    zygote = next(
        pid
        for pid, command in living().items()
        if command.count("gpu_runner.zygote") and processes.state_of(pid).parent == first.pid
    )
    os.kill(first.pid, signal.SIGSTOP)  # nobody may sweep before both are dead
    os.kill(zygote, signal.SIGKILL)
    first.kill()
    await ended(first)
    assert fled in living()
    program()
    assert isinstance(await listener.end(job_id), events.JobInterrupted)
    assert fled not in living()


async def test_sigterm_lets_jobs_save_interrupts_them_and_leaves_nothing_behind(listener, program, living) -> None:
    process = program()
    await ready(listener)
    polite, saving = await listener.start("sleep"), await listener.start("keep")
    rude = await listener.start("deaf", slot="gpu")
    waiting = await listener.start("complete", slot="gpu")
    for job_id in (polite, saving, rude):
        await listener.event(job_id, events.PhaseEntered)
    await listener.held(waiting, "queued")
    began = time.monotonic()
    process.terminate()
    assert await ended(process) == 0
    assert time.monotonic() - began < listener.settings.stop_grace_s + 3
    for job_id in (polite, saving, rude, waiting):
        interrupted = await listener.end(job_id)
        assert isinstance(interrupted, events.JobInterrupted)
        assert (interrupted.cause, interrupted.planned) == ("the runner is stopping", True)
    assert (await listener.event(saving, events.CheckpointSaved)).step == 7
    assert listener.reports[-1].stopping
    assert not living()


async def test_a_runner_stops_quickly_while_redis_is_away(own_redis, listening_to, program, living) -> None:
    async with listening_to(own_redis) as listener:
        process = program(own_redis)
        await ready(listener)
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(int((listener.root.redis / "pid").read_text()), signal.SIGKILL)
        process.terminate()
        os.kill(process.pid, signal.SIGCONT)
        assert await ended(process) == 0
        assert not living()


def test_a_second_runner_of_the_same_name_refuses_with_a_sentence(settings, tmp_path) -> None:
    folder = tmp_path / "runners" / settings.runner_name
    folder.mkdir(parents=True)
    with subprocess.Popen(["flock", str(folder / "runner.lock"), "cat"], stdin=subprocess.PIPE) as holder:
        while subprocess.run(["flock", "-n", str(folder / "runner.lock"), "true"]).returncode == 0:
            pass
        refused = _run_worker(settings.to_environment())
        holder.communicate()
    assert refused.returncode == 2
    assert "give this one another name with TRAINING_RUNNER_ID" in refused.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("TRAINING_RUNNER_ID", "../other"), ("TRAINING_CPU_SLOTS", "none"), ("TRAINING_LOG_LEVEL", "loud")],
)
def test_a_setting_that_cannot_be_used_is_named(settings, name, value) -> None:
    refused = _run_worker(settings.to_environment() | {name: value})
    assert refused.returncode == 2
    assert name in refused.stderr
    assert "Traceback" not in refused.stderr


def _run_worker(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpu_runner.worker"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


async def test_no_line_is_lost_or_reordered_when_redis_is_killed(own_redis, listening_to, running) -> None:
    async with listening_to(own_redis) as listener, running(own_redis):
        await listener.until(lambda: listener.reports)
        job_id = await listener.start("lines=200")
        for after in (5, 30):
            await listener.until(lambda after=after: len(listener.lines(job_id)) >= after)
            os.kill(int((listener.root.redis / "pid").read_text()), signal.SIGKILL)
        assert isinstance(await listener.end(job_id), events.JobCompleted)
        heard = list(dict.fromkeys(listener.lines(job_id)))  # a line whose answer was lost is sent twice
        assert heard == listener.journal(job_id)
        assert isinstance(await listener.end(await listener.start("complete", slot="gpu")), events.JobCompleted)


async def test_a_job_ends_for_its_runner_while_redis_is_away(own_redis, listening_to, running, monkeypatch) -> None:
    async with listening_to(own_redis) as listener, running(own_redis):
        await listener.until(lambda: listener.reports)
        job_id = await listener.start("sleep=0.3")
        await listener.event(job_id, events.PhaseEntered)
        monkeypatch.setattr("gpu_runner.worker._ensure_redis", _nothing)
        os.kill(int((listener.root.redis / "pid").read_text()), signal.SIGKILL)
        await settled(lambda: not journal.has_ended(listener.attempt(job_id).journal))
        monkeypatch.undo()
        assert isinstance(await listener.end(job_id), events.JobCompleted)
        await listener.held(job_id, "finished")


async def _nothing(_: object) -> None:
    """Redis stays away."""


@pytest.mark.extended
def test_with_a_gpu_nothing_is_preloaded_that_asks_it_for_its_abilities() -> None:
    modules = preload(has_cuda=True)
    code = f"import {', '.join(modules)}, sys; print('bitsandbytes' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "False", answer.stderr
