"""Recipes that behave as their spec's `data_path` says: what children may do to their runner."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from gpu_runner import staging
from gpu_runner.work import Stopped, Work
from jobs import errors, events
from jobs.results import GenerateResult, Result
from jobs.specs import Kind

RESULT = GenerateResult(answers=())


def recipe(_: Kind) -> Any:
    return play


def play(work: Work[Any]) -> Result:
    name, _, argument = work.spec.data_path.partition("=")
    return globals()[name](work, argument)


def complete(work: Work[Any], _: str) -> Result:
    work.journal.phase("playing")
    print("hello from the child")
    return RESULT


def sleep(work: Work[Any], seconds: str) -> Result:
    """Works until it is over or somebody stops it."""
    work.journal.phase("sleeping")
    deadline = time.monotonic() + float(seconds or 60)
    while time.monotonic() < deadline:
        work.stop.check()
        if work.stop.wanted == "pause":
            work.journal.state(events.JobPaused, step=7)
            raise Stopped
        time.sleep(0.01)
    return RESULT


def hang(work: Work[Any], _: str) -> Result:
    """Takes two steps, then nothing but a signal ends it."""
    work.journal.progress(1, 100)
    time.sleep(0.3)
    work.journal.progress(2, 100)
    time.sleep(600)
    return RESULT


def keep(work: Work[Any], _: str) -> Result:
    """Saves its state when its runner stops."""
    work.journal.phase("keeping")
    while work.stop.wanted != "leave":
        work.stop.check_cancel()
        time.sleep(0.01)
    work.journal.checkpoint(7, work.folder.checkpoints, 0, {})
    raise Stopped


def lines(work: Work[Any], count: str) -> Result:
    """One metric every ten milliseconds."""
    for step in range(1, int(count) + 1):
        work.journal.metrics(step, {"train_loss": 1 / step})
        time.sleep(0.01)
    return RESULT


def spam(work: Work[Any], seconds: str) -> Result:
    deadline = time.monotonic() + float(seconds)
    step = 0
    while time.monotonic() < deadline:
        step += 1
        work.journal.progress(step, 10**9)
    return RESULT


def invalid(_: Work[Any], __: str) -> Result:
    raise errors.DatasetInvalid("Row 3 has no answer: add one.")


def broken(work: Work[Any], _: str) -> Result:
    raise RuntimeError(f"cannot read '{work.folder.start}': who knows why")


def memory(_: Work[Any], __: str) -> Result:
    raise MemoryError


def full(_: Work[Any], __: str) -> Result:
    raise OSError(28, "No space left on device", "/somewhere/file")


def leave(_: Work[Any], status: str) -> Result:
    sys.exit(int(status))


def kill(work: Work[Any], _: str) -> Result:
    work.journal.phase("dying")
    os.kill(os.getpid(), signal.SIGKILL)
    return RESULT


def deaf(work: Work[Any], _: str) -> Result:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    work.journal.phase("deaf")
    time.sleep(600)
    return RESULT


def stage(work: Work[Any], _: str) -> Result:
    """Does not come to remove what it makes."""
    for folder in (staging.dataset, staging.export):
        place = folder(work.root, work.job_id, work.attempt)
        place.mkdir(parents=True)
        (place / "half").write_text("a row")
    return deaf(work, "")


def escape(work: Work[Any], how: str) -> Result:
    """Leaves a grandchild in a session of its own, then behaves; the note says who it is. `closed`: it also lets go
    of every descriptor, as daemons do."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(write_end, str(os.getpid()).encode())
            if how == "closed":
                os.closerange(0, 100)
            time.sleep(600)
        os._exit(0)
    work.journal.note(os.read(read_end, 20).decode(), "escaped")
    return sleep(work, "600")


def gpus(work: Work[Any], _: str) -> Result:
    work.journal.note(os.environ.get("CUDA_VISIBLE_DEVICES", "all"), "gpus")
    return RESULT


def environment(work: Work[Any], _: str) -> Result:
    program = subprocess.run([sys.executable, "-c", "import os; print(*os.environ)"], capture_output=True, text=True)
    for name in (*os.environ, *program.stdout.split()):
        work.journal.note(name, "variable")
    work.journal.note(str(threading.active_count()), "threads")
    work.journal.note(str(work.cores), "cores")
    return RESULT
