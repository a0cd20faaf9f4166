"""One attempt from its command to its last line, with real children under a real zygote."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from gpu_runner import child, processes, staging
from gpu_runner.devices import Devices
from gpu_runner.forker import Forker
from jobs import commands, events
from jobs.errors import FailureReason
from jobs.events import Device
from jobs.specs import Slot


def is_alive(pid: int) -> bool:
    state = processes.state_of(pid)
    return state is not None and not state.is_dead


def children_of(front, job_id: str) -> list[int]:
    """Who holds the lock file of an attempt."""
    lock = str(front.root.runner(front.settings.runner_name) / f"{job_id}.1.lock")
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and any(str(link.readlink()) == lock for link in (folder / "fd").iterdir()):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


async def test_a_job_runs_and_its_journal_is_heard_byte_for_byte(front) -> None:
    job_id = await front.start("complete", slot="gpu")
    assert isinstance(await front.end(job_id), events.JobCompleted)
    assert front.lines(job_id) == front.journal(job_id)
    assert [event.n for event, _ in front.heard] == [1, 2, 3]
    started = await front.event(job_id, events.JobStarted)
    assert (started.device, started.runner_id) == ("cpu", front.settings.runner_name)
    assert started.device_name
    assert front.attempt(job_id).log.read_text() == "hello from the child\n"
    assert (await front.held(job_id, "finished")).last_n == 3


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ("invalid", FailureReason.DATASET_INVALID, "Row 3 has no answer: add one."),
        ("memory", FailureReason.OUT_OF_MEMORY, "memory"),
        ("full", FailureReason.DISK_FULL, "space"),
        ("broken", FailureReason.INTERNAL, "RuntimeError: cannot read '…': who knows why"),
    ],
)
async def test_a_failure_says_its_reason_and_no_paths(front, behaviour, reason, words) -> None:
    job_id = await front.start(behaviour)
    failed = await front.end(job_id)
    assert isinstance(failed, events.JobFailed)
    assert failed.reason is reason
    assert words in failed.detail
    assert str(front.root.folder) not in failed.detail
    assert "Traceback" in front.attempt(job_id).log.read_text()


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        ("kill", "the process was killed by signal 9"),
        ("leave=3", "the process ended with status 3 and without a result"),
        ("leave=0", "the process ended with status 0 and without a result"),
    ],
)
async def test_a_death_without_a_last_line_is_an_interruption(front, behaviour, cause) -> None:
    job_id = await front.start(behaviour)
    interrupted = await front.end(job_id)
    assert isinstance(interrupted, events.JobInterrupted)
    assert interrupted.cause == cause
    assert front.lines(job_id) == front.journal(job_id)
    assert interrupted.n == len(front.journal(job_id))


async def test_a_kill_for_lack_of_memory_is_a_failure_and_the_next_job_runs(front, monkeypatch) -> None:
    kills = iter([4, 5])
    monkeypatch.setattr("gpu_runner.oom._counters", lambda: iter([_Counter(next(kills, 5))]))
    failed = await front.end(await front.start("kill"))
    assert isinstance(failed, events.JobFailed)
    assert failed.reason is FailureReason.OUT_OF_MEMORY
    assert isinstance(await front.end(await front.start("complete")), events.JobCompleted)
    assert isinstance(await front.end(await front.start("kill")), events.JobInterrupted)


class _Counter:
    """A file of the kernel's that counts its kills."""

    def __init__(self, kills: int) -> None:
        self._kills = kills

    def read_text(self) -> str:
        return f"oom 0\noom_kill {self._kills}\n"


async def test_work_with_a_model_that_hangs_is_killed_and_interrupted(settings, listening_to, running) -> None:
    impatient = msgspec.structs.replace(settings, hang_after_s=1.0)
    async with listening_to(impatient) as front, running(impatient):
        await front.until(lambda: front.reports)
        hung = await front.start("hang", slot="gpu")
        slow = await front.start("sleep=8")  # without a model nobody feels its pulse
        ended = await front.end(hung)
        assert isinstance(ended, events.JobInterrupted)
        assert "no sign of life for 6 s" in ended.cause, "twenty steps of 0.3 s are longer than a second"
        assert isinstance(await front.end(slow), events.JobCompleted)


async def test_a_cancel_ends_a_running_job_and_leaves_no_process(front) -> None:
    job_id = await front.start("sleep")
    await front.event(job_id, events.PhaseEntered)
    (child,) = children_of(front, job_id)
    await front.cancel(job_id)
    assert isinstance(await front.end(job_id), events.JobCancelled)
    assert not is_alive(child)


async def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(front) -> None:
    job_id = await front.start("deaf")
    await front.event(job_id, events.PhaseEntered)
    began = time.monotonic()
    await front.cancel(job_id)
    await front.cancel(job_id)
    assert isinstance(await front.end(job_id), events.JobCancelled)
    assert time.monotonic() - began < front.settings.stop_grace_s + 1
    assert not children_of(front, job_id)


async def test_a_cancel_does_not_wait_as_long_as_saving_may_take(settings, listening_to, running, monkeypatch) -> None:
    monkeypatch.setattr("gpu_runner.supervisor._CANCEL_GRACE_S", 0.1)
    patient = msgspec.structs.replace(settings, stop_grace_s=60)
    async with listening_to(patient) as front, running(patient):
        await front.until(lambda: front.reports)
        job_id = await front.start("deaf")
        await front.event(job_id, events.PhaseEntered)
        await front.cancel(job_id)
        assert isinstance(await front.end(job_id), events.JobCancelled)


async def test_what_a_killed_job_was_making_is_gone_when_its_end_is_told(front) -> None:
    job_id = await front.start("stage")
    await front.event(job_id, events.PhaseEntered)
    being_made = [make(front.root, job_id, 1) for make in (staging.dataset, staging.export)]
    assert all(folder.exists() for folder in being_made)
    await front.cancel(job_id)
    await front.end(job_id)
    assert not any(folder.exists() for folder in being_made)


@pytest.mark.parametrize("how", ["open", "closed"])
async def test_a_grandchild_that_fled_its_session_is_gone_before_the_cancel_is_answered(front, how) -> None:
    job_id = await front.start(f"escape={how}")
    fled = int((await front.event(job_id, events.JobNoted)).message)
    assert is_alive(fled)
    await front.cancel(job_id)
    assert isinstance(await front.end(job_id), events.JobCancelled)
    assert not is_alive(fled)


async def test_a_queued_job_is_cancelled_at_once_and_never_starts(front) -> None:
    blocking = await front.start("sleep", slot="gpu")
    await front.event(blocking, events.PhaseEntered)
    waiting = await front.start("complete", slot="gpu")
    await front.held(waiting, "queued")
    await front.cancel(waiting)
    assert isinstance(await front.end(waiting), events.JobCancelled)
    await front.cancel(blocking)
    await front.end(blocking)
    last = await front.start("complete", slot="gpu")
    await front.end(last)
    assert len(front.journal(waiting)) == 1


async def test_a_pause_lets_the_job_save_and_end(front) -> None:
    job_id = await front.start("sleep")
    await front.event(job_id, events.PhaseEntered)
    await front.send(commands.Pause(job_id=job_id, attempt=1))
    paused = await front.end(job_id)
    assert isinstance(paused, events.JobPaused)
    assert paused.step == 7
    assert (await front.held(job_id, "finished")).last_n == len(front.journal(job_id))


async def test_progress_is_heard_at_most_four_times_a_second_and_not_journalled(front) -> None:
    job_id = await front.start("spam=1.0")
    await front.end(job_id)
    progress = [event for event, _ in front.heard if isinstance(event, events.JobProgressed)]
    assert 1 <= len(progress) <= 5
    assert len(front.journal(job_id)) == 2


async def test_children_see_no_secret(front_with_secrets) -> None:
    front = front_with_secrets
    job_id = await front.start("environment")
    await front.end(job_id)
    notes = [event for event, _ in front.heard if isinstance(event, events.JobNoted)]
    names = {note.message for note in notes if note.code == "variable"}
    assert {"PATH", "TRAINING_DATA_ROOT", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE"} <= names
    assert not {"HF_TOKEN", "TRAINING_TOKEN", "TRAINING_TOKEN_FILE", "REDIS_URL", "AWS_SECRET_ACCESS_KEY"} & names


async def test_a_job_on_the_cpu_sees_no_gpu(front) -> None:
    job_id = await front.start("gpus")
    assert (await front.event(job_id, events.JobNoted)).message == ""


def test_a_job_on_a_gpu_works_on_that_one(monkeypatch) -> None:
    chosen = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(set_device=chosen.append)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    child.use_only("cuda:1")
    assert chosen == ["cuda:1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


async def test_slots_of_a_device_are_respected(front) -> None:
    first, second = await front.start("sleep=0.3", slot="gpu"), await front.start("sleep=0.3", slot="gpu")
    data = await front.start("complete")
    await front.end(data)
    await front.end(first)
    await front.end(second)
    order = [(event.job_id, type(event)) for event, _ in front.heard if event.job_id in (first, second)]
    assert order.index((first, events.JobCompleted)) < order.index((second, events.JobStarted))


async def test_a_job_on_several_devices_keeps_a_slot_of_each(settings, listening_to, running, monkeypatch) -> None:
    slots = {Slot.CPU: 1, Slot.GPU: 1}
    two = tuple(Device(device_id=name, name="Core", slots=slots) for name in ("cpu", "cpu:1"))
    monkeypatch.setattr(Devices, "read", lambda *_: two)
    asked, real = [], Forker.fork
    monkeypatch.setattr(
        Forker, "fork", lambda self, assignment, *rest: asked.append(assignment.cores) or real(self, assignment, *rest)
    )
    async with listening_to(settings) as front, running(settings):
        await front.until(lambda: front.reports)
        both = await front.start("sleep=0.3", slot="gpu", device="cpu,cpu:1")
        second = await front.start("complete", slot="gpu", device="cpu:1")
        first = await front.start("complete", slot="gpu", device="cpu")
        for job_id in (both, second, first):
            await front.end(job_id)
        started = await front.event(both, events.JobStarted)
        assert (started.device, started.device_name) == ("cpu,cpu:1", "2 × Core")
        assert asked == [max(1, len(os.sched_getaffinity(0)) * count // 2) for count in (2, 1, 1)]
        order = [(event.job_id, type(event)) for event, _ in front.heard]
        for job_id in (second, first):
            assert order.index((both, events.JobCompleted)) < order.index((job_id, events.JobStarted))


async def test_a_device_the_runner_does_not_have_is_an_interruption(front) -> None:
    job_id = await front.start("complete", slot="gpu", device="cuda:7")
    interrupted = await front.end(job_id)
    assert isinstance(interrupted, events.JobInterrupted)
    assert "cuda:7" in interrupted.cause


async def test_the_death_of_the_zygote_interrupts_its_jobs_and_the_next_job_runs(front) -> None:
    job_id = await front.start("sleep")
    await front.event(job_id, events.PhaseEntered)
    (child,) = children_of(front, job_id)
    os.kill(processes.state_of(child).parent, signal.SIGKILL)
    interrupted = await front.end(job_id)
    assert isinstance(interrupted, events.JobInterrupted)
    assert interrupted.cause == "the process that starts jobs died"
    assert not is_alive(child)
    assert isinstance(await front.end(await front.start("complete")), events.JobCompleted)
