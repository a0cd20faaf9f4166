"""A trainer of the standard library: starts in milliseconds, learns a number that anybody can compute again, and
keeps the rules of the real one: journal, checkpoints, rotation, stopping, resuming. Its manners are in the job's tags.

A module of recipes for `gpu_runner.worker.serve`, like `gpu_runner.recipes`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import seams

from gpu_runner.training import checkpoints, inheritance
from gpu_runner.training.checkpoints import Checkpoint, Manifest
from gpu_runner.work import Stopped, Work
from jobs.events import JobPaused
from jobs.results import FinetuneResult
from jobs.specs import FinetuneSpec, Kind

SIGNATURES = "pids"
_MODULUS = 2**31 - 1


@dataclass
class Learned:
    """All that changes from step to step. `loss` is the sum since it was last logged."""

    x: int
    step: int = 0
    loss: float = 0.0
    count: int = 0

    def learn(self) -> None:
        self.step += 1
        self.x = self.x * 48271 % _MODULUS
        self.loss += self.x / _MODULUS
        self.count += 1

    def log(self) -> float:
        mean = self.loss / self.count
        self.loss, self.count = 0.0, 0
        return mean

    @property
    def weights(self) -> bytes:
        return self.x.to_bytes(4, "big") * 512


def begin(seed: int) -> Learned:
    return Learned(x=seed % (_MODULUS - 1) + 1)


def undisturbed(seed: int, steps: int, logging_steps: int) -> tuple[dict[int, float], bytes]:
    """What a run logs, and its last weights, if nothing ever happens to it."""
    learned, logged = begin(seed), {}
    while learned.step < steps:
        learned.learn()
        if learned.step % logging_steps == 0 or learned.step == steps:
            logged[learned.step] = learned.log()
    return logged, learned.weights


def manners(tags: Iterable[str]) -> dict[str, str]:
    """Tags such as `deaf` or `step-s=0.02`."""
    return {name: value for name, _, value in (tag.partition("=") for tag in tags)}


def recipe(kind: Kind) -> Callable[[Work[Any]], Any]:
    if kind is not Kind.FINETUNE:
        raise NotImplementedError(f"the fake trainer does no {kind}")
    return run


def run(work: Work[FinetuneSpec]) -> FinetuneResult:
    seams.put_into("child", work.root.folder)
    _sign(work, os.getpid())
    return _Run(work).to_the_end()


def _sign(work: Work[Any], pid: int) -> None:
    """Say which processes belong to the attempt: those that escape have nothing else to be known by."""
    with contextlib.suppress(OSError), (work.folder.folder / SIGNATURES).open("a") as file:  # the disk may be full
        file.write(f"{pid}\n")


class _Run:
    def __init__(self, work: Work[FinetuneSpec]) -> None:
        self._work = work
        self._config = work.spec.config
        self._manners = manners(work.spec.tags)
        self._total = int(self._config.max_steps or 1)
        self._last: Checkpoint | None = None

    def to_the_end(self) -> FinetuneResult:
        work = self._work
        work.journal.phase("loading")
        self._behave("loading")
        learned = self._resume()
        work.journal.phase("training")
        while learned.step < self._total:
            work.stop.check_cancel()
            self._behave(str(learned.step))
            time.sleep(float(self._manners.get("step-s", 0.01)))
            learned.learn()
            work.journal.progress(learned.step, self._total)
            if self._is_due(learned, self._config.logging_steps):
                work.journal.metrics(learned.step, {"train_loss": learned.log()}, total_steps=self._total)
            if self._is_due(learned, self._config.save_steps):
                self._save(learned)
            if work.stop.wanted in ("pause", "leave") and learned.step < self._total:
                self._save_and_stop(learned)
        self._behave("end")
        folder = self._last.folder if self._last else None
        return FinetuneResult(steps=learned.step, checkpoint_path=work.root.name_of(folder) if folder else "")

    def _resume(self) -> Learned:
        self._last = inheritance.take_over(self._work)
        return Learned(**json.loads(self._last.state.read_bytes())) if self._last else begin(self._config.seed)

    def _is_due(self, learned: Learned, every: int) -> bool:
        return learned.step % every == 0 or learned.step == self._total

    def _save(self, learned: Learned) -> None:
        work, folder = self._work, self._work.folder.checkpoints
        work.journal.phase("saving")
        self._behave("saving")

        def fill(checkpoint: Checkpoint) -> None:
            blocks = int(self._manners.get("mb", 0)) * 512 + 1
            (checkpoint.model / "weights.bin").write_bytes(learned.weights * blocks)
            checkpoint.state.write_bytes(json.dumps(asdict(learned)).encode())

        manifest = Manifest(
            job_id=work.job_id,
            attempt=work.attempt,
            step=learned.step,
            method="full",
            model_name="fake",
            metrics={},
            lines=work.journal.lines,
        )
        self._last = checkpoints.write(folder, manifest, fill, work.journal.sync)
        work.journal.checkpoint(learned.step, self._last.folder, self._last.size_bytes, {})
        say_gone = work.journal.checkpoint_removed
        checkpoints.rotate(folder, self._config.save_total_limit, None, say_gone)
        checkpoints.discard_earlier(work.root, work.job_id, work.attempt, say_gone)
        work.journal.phase("training")

    def _save_and_stop(self, learned: Learned) -> None:
        if self._last is None or self._last.step != learned.step:
            self._save(learned)
        if self._work.stop.wanted == "pause":
            self._work.journal.state(JobPaused, step=learned.step)
        raise Stopped

    # -- bad manners

    def _behave(self, where: str) -> None:
        """`<manner>@<where>`: at a step, in a phase, or at the end."""
        for manner, act in _ACTS.items():
            if self._manners.get(manner) == where:
                act(self._work)


def _deaf(_: Work[Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _hang(_: Work[Any]) -> None:
    while True:
        time.sleep(3600)


def _wait(work: Work[Any]) -> None:
    """Does nothing, and listens."""
    while True:
        work.stop.check()
        time.sleep(0.01)


def _leak(work: Work[Any]) -> None:
    """A program in a session of its own, which inherits nothing and outlives its starter."""
    leaked = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(3600)"],
        start_new_session=True,
    )
    _sign(work, leaked.pid)


def _escape(work: Work[Any]) -> None:
    """Double-forks into a session of its own, deaf, and with every descriptor closed, as daemons do."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            _sign(work, os.getpid())
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.closerange(0, 256)
            time.sleep(3600)
        os._exit(0)
    os.wait()


def _die(_: Work[Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _poison(_: Work[Any]) -> None:
    """Kill the runner: the parent of the zygote."""
    zygote = os.getppid()
    runner = int(Path(f"/proc/{zygote}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(runner, signal.SIGKILL)
    time.sleep(3600)


def _memory(_: Work[Any]) -> None:
    raise MemoryError


_ACTS: dict[str, Callable[[Work[Any]], None]] = {
    "deaf": _deaf,
    "leak": _leak,
    "escape": _escape,
    "hang": _hang,
    "wait": _wait,
    "die": _die,
    "poison": _poison,
    "memory": _memory,
}
