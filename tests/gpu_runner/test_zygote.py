"""The warm parent by itself, and what it must not do."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_runner import forker as forker_module
from gpu_runner import processes
from gpu_runner.child import Assignment
from gpu_runner.forker import Child, Forker, NotStarted, environment
from gpu_runner.journal import count_lines, has_ended, last_event
from jobs import commands, events, tasks
from jobs.paths import AttemptFolder, DataRoot
from jobs.settings import Settings
from jobs.specs import ValidateSpec


@asynccontextmanager
async def forking(settings: Settings, *preload: str) -> AsyncIterator[Forker]:
    forker = Forker(environment(settings, os.environ), preload)
    task = asyncio.create_task(forker.run())
    try:
        await forker.until_ready()
        yield forker
    finally:
        await tasks.end(task)


async def fork(forker: Forker, settings: Settings, behaviour: str) -> tuple[Child, AttemptFolder]:
    folder = DataRoot(settings.data_folder).attempt(behaviour, 1)
    folder.folder.mkdir(parents=True)
    start = commands.Start(job_id=behaviour, attempt=1, spec=ValidateSpec(data_path=behaviour), device="cpu")
    folder.start.write_bytes(commands.encode(start))
    assignment = Assignment(
        attempt_folder=str(folder.folder), runner_id="r", device_name="toy", cores=1, recipes="toy_recipes"
    )
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    output = os.open(folder.log, os.O_WRONLY | os.O_CREAT)
    lock = os.open(folder.folder / "lock", os.O_WRONLY | os.O_CREAT)
    try:
        return await forker.fork(assignment, write_end, output, lock), folder
    finally:
        for descriptor in (read_end, write_end, output, lock):
            os.close(descriptor)


def listening(folder: AttemptFolder) -> None:
    """Until the child works, and so listens to signals."""
    deadline = time.monotonic() + 5
    while count_lines(folder.journal) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_a_child_is_forked_from_warm_code_and_its_end_is_told(settings) -> None:
    async with forking(settings) as forker:
        child, folder = await fork(forker, settings, "complete")
        ending = await child.ended
    assert (ending.exit_code, ending.swept) == (0, True)
    assert isinstance(last_event(folder.journal), events.JobCompleted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
async def test_signals_reach_the_child(settings, number, code) -> None:
    async with forking(settings) as forker:
        child, folder = await fork(forker, settings, "sleep")
        await asyncio.to_thread(listening, folder)
        forker.signal(child, number)
        assert (await child.ended).exit_code == code
        forker.signal(child, number)
    assert not has_ended(folder.journal)


async def test_a_pause_that_comes_before_the_child_listens_does_not_kill_it(settings) -> None:
    async with forking(settings) as forker:
        child, folder = await fork(forker, settings, "complete")
        forker.signal(child, signal.SIGUSR1)
        assert (await child.ended).exit_code == 0
    assert isinstance(last_event(folder.journal), events.JobCompleted)


async def test_children_get_a_fresh_interpreter_when_a_preloaded_module_left_a_thread(settings, capfd) -> None:
    async with forking(settings, "toy_thread") as forker:
        child, folder = await fork(forker, settings, "environment")
        assert (await child.ended).exit_code == 0
    notes = [events.decode_event(line) for line in folder.journal.read_bytes().splitlines()]
    assert [note.message for note in notes if isinstance(note, events.JobNoted) and note.code == "threads"] == ["1"]
    assert "preloading left 2 threads" in capfd.readouterr().err


async def test_a_module_that_cannot_be_preloaded_is_named_and_the_others_work(settings, capfd) -> None:
    async with forking(settings, "no_such_module") as forker:
        child, _ = await fork(forker, settings, "complete")
        assert (await child.ended).exit_code == 0
    assert "no_such_module" in capfd.readouterr().err


async def test_children_end_with_their_zygote(settings) -> None:
    async with forking(settings) as forker:
        child, _ = await fork(forker, settings, "deaf")
        assert processes.state_of(child.pid)
    assert (await child.ended).exit_code is None
    state = processes.state_of(child.pid)
    assert state is None or state.is_dead  # init reaps it when it likes


async def test_a_zygote_that_takes_its_time_to_leave_is_waited_for(settings, monkeypatch) -> None:
    """However often the wait is cancelled: else nobody hears of the children's end."""
    real = forker_module._see_off

    def slowly(process: "subprocess.Popen[bytes]") -> None:
        time.sleep(0.3)
        real(process)

    monkeypatch.setattr(forker_module, "_see_off", slowly)
    async with forking(settings) as forker:
        child, _ = await fork(forker, settings, "deaf")
    assert child.ended.done()
    assert (await child.ended).exit_code is None


async def test_children_end_when_their_zygote_is_killed(settings) -> None:
    async with forking(settings) as forker:
        child, _ = await fork(forker, settings, "deaf")
        os.kill(processes.state_of(child.pid).parent, signal.SIGKILL)
        assert (await child.ended).exit_code is None
        state = processes.state_of(child.pid)
        assert state is None or state.is_dead


async def test_a_fork_is_refused_while_there_is_no_zygote(settings) -> None:
    forker = Forker(environment(settings, os.environ), ())
    with pytest.raises(NotStarted):
        await fork(forker, settings, "complete")


def test_the_environment_of_children_is_an_allow_list(settings) -> None:
    own = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "1",
        "NCCL_DEBUG": "INFO",
        "HF_TOKEN": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    seen = environment(Settings(data_root="somewhere", token="s", redis_url="redis://:s@host", hf_offline=True), own)
    theirs = ("PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG")
    assert {name: seen[name] for name in theirs} == {name: own[name] for name in theirs}
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert Path(seen["TRAINING_DATA_ROOT"]).is_absolute()
    assert "s" not in seen.values()
    assert not any("redis" in value for value in seen.values())


_RUNNER_WHOSE_ZYGOTE_WARMS_UP = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
command = [sys.executable, "-m", "gpu_runner.zygote", str(theirs.fileno()), "slow_to_import"]
print(subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True).pid, flush=True)
time.sleep(60)
"""


def test_a_zygote_that_still_imports_does_not_outlive_its_runner(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "slow_to_import.py").write_text(f"import time\nopen({str(begun)!r}, 'w')\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", _RUNNER_WHOSE_ZYGOTE_WARMS_UP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as runner:
        assert runner.stdout is not None
        zygote = int(runner.stdout.readline())
        while not begun.exists():
            time.sleep(0.01)
        runner.kill()
    deadline = time.monotonic() + 2
    while (state := processes.state_of(zygote)) and not state.is_dead:
        if time.monotonic() > deadline:
            os.kill(zygote, signal.SIGKILL)
            raise AssertionError("it went on importing")
        time.sleep(0.01)
