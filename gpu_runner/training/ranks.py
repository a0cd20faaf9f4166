"""Several processes train one model together: each computes its part of every step, and all make the same update.

Used by the recipe finetune, the loop and the optimiser. Rank 0 is the job's own child: it alone reports, evaluates and
saves. It starts the others (`gpu_runner.follower`) as programs, as torchrun would, whose agent is not used: it would
be a second supervisor that restarts what ours counts as attempts. Gradients are added here rather than by torch's
DistributedDataParallel, which takes the mean over processes where a step needs that over all its trained tokens.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor, distributed

from gpu_runner.work import Work
from jobs import events
from jobs.commands import Start
from jobs.errors import FailureReason, JobFailed, NoCapacity, OutOfMemory, TrainingError
from jobs.footprint import BUCKET
from jobs.settings import Settings
from jobs.specs import FinetuneSpec

T = TypeVar("T")

JOIN_WITHIN_S = 300.0
_LOOPBACK = "127.0.0.1"
_INTERFACES = {"linux": "lo", "darwin": "lo0"}
_WITHOUT_LIMIT = timedelta(days=365)  # others wait while rank 0 evaluates; a dead rank is noticed by its connection
_LOOK_EVERY_S = 0.02
_WATCH_EVERY_S = 0.5
_NOTICED_WITHIN_S = 20.0  # what ends all processes alike, this one reports itself


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower is told on its standard input; `parent` is the process it must not outlive."""

    start: Start
    settings: Settings
    cores: int
    rank: int
    count: int
    port: int
    parent: int


class Complaint(msgspec.Struct, frozen=True):
    """Why a follower failed, on its standard output."""

    reason: FailureReason
    message: str


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them. With `count` 1 every method is nothing but its argument."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value added up over all processes."""
        if self.count == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(numbers)
        given: list[float] = numbers.tolist()
        return given

    def given_by_first(self, value: T) -> T:
        """What rank 0 calls with; what the others say is not looked at."""
        if self.count == 1:
            return value
        holder = [value if self.rank == 0 else None]
        distributed.broadcast_object_list(holder, src=0)
        first: Any = holder[0]
        return first  # type: ignore[no-any-return]  # torch fills the list with what was sent

    def begin_alike(self, parameters: Sequence[Tensor]) -> None:
        """Take over rank 0's values."""
        if self.count > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), src=0)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients of all processes. What got one nowhere stays without, so that no decay moves it."""
        if self.count == 1:
            return
        has_one = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        distributed.all_reduce(has_one)
        gradients = []
        for parameter, somewhere in zip(parameters, has_one.tolist(), strict=True):
            if somewhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            _add_up(bucket)


@contextmanager
def led(work: Work[FinetuneSpec]) -> Iterator[Ranks]:
    """The processes a configuration asks for, with this one as rank 0; the others end with the context.

    Raises:
        NoCapacity: this runner cannot give them.
        JobFailed: what ended another one, where that ended this one.
    """
    count = work.spec.config.num_processes
    if count == 1:
        yield Ranks()
        return
    _check_possible(work, count)
    store = distributed.TCPStore(_LOOPBACK, 0, count, is_master=True, wait_for_workers=False)
    followers = [Follower(work, rank, count, store.port) for rank in range(1, count)]
    is_over = threading.Event()
    try:
        for follower in followers:
            follower.await_ready(store)
        if work.device != "cpu":
            end_with_the_first(followers, partial(last_word, work), is_over)
        yield join(store, 0, count, work.device)
    except Exception as error:
        failure = None if isinstance(error, TrainingError) else _first_failure(followers)
        if failure is None:
            raise
        raise failure from error
    finally:
        is_over.set()
        for follower in followers:
            follower.end()
        leave()


def join(store: distributed.Store, rank: int, count: int, device: str) -> Ranks:
    """Become one of the processes; all of them are ready when this returns."""
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", _INTERFACES.get(sys.platform, "lo"))
    is_gpu = device != "cpu"
    distributed.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=_WITHOUT_LIMIT,
        device_id=torch.device(device) if is_gpu else None,
    )
    return Ranks(rank, count, device)


def follow(orders: Orders) -> Ranks:
    """Join as the orders say; called in a follower."""
    store = distributed.TCPStore(_LOOPBACK, orders.port, orders.count, is_master=False)
    store.set(_ready_key(orders.rank), "1")
    return join(store, orders.rank, orders.count, orders.start.device)


def leave() -> None:
    """End Gloo's threads. NCCL's end with the process: its own end is a call that waits for every process, and others
    may be gone. Source: NCCL's manual, ncclCommDestroy."""
    if distributed.is_initialized() and distributed.get_backend() == distributed.Backend.GLOO:
        distributed.destroy_process_group()


class Follower:
    """Another rank's process."""

    def __init__(self, work: Work[FinetuneSpec], rank: int, count: int, port: int) -> None:
        self._rank = rank
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu_runner.follower"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        orders = Orders(
            start=Start(job_id=work.job_id, attempt=work.attempt, spec=work.spec, device=device_of(work, rank)),
            settings=work.settings,
            cores=max(1, work.cores // count),
            rank=rank,
            count=count,
            port=port,
            parent=os.getpid(),
        )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(msgspec.json.encode(orders))

    def await_ready(self, store: distributed.Store) -> None:
        """Raises JobFailed when it ended instead, or takes too long."""
        deadline = time.monotonic() + JOIN_WITHIN_S
        while not store.check([_ready_key(self._rank)]):
            if self._process.poll() is not None:
                raise self.failure()
            if time.monotonic() > deadline:
                raise JobFailed(f"Process {self._rank} of the training did not start within {JOIN_WITHIN_S:g} s.")
            time.sleep(_LOOK_EVERY_S)

    @property
    def has_ended_badly(self) -> bool:
        return self._process.poll() not in (None, 0)

    def has_failed(self) -> bool:
        """Whether it ended by itself, or is about to: its connection is closed a little before it is gone."""
        try:
            return self._process.wait(timeout=2) != 0
        except subprocess.TimeoutExpired:
            return False

    def failure(self) -> JobFailed:
        """In its own words where it had some."""
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        self._process.wait()
        if self._process.returncode == -signal.SIGKILL:
            return OutOfMemory()
        try:
            complaint = msgspec.json.decode(said, type=Complaint)
        except msgspec.MsgspecError:  # it said nothing, or not all of it
            return JobFailed(f"Process {self._rank} of the training ended with status {self._process.returncode}.")
        error = JobFailed(complaint.message)
        error.reason = complaint.reason
        return error

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _check_possible(work: Work[FinetuneSpec], count: int) -> None:
    if not distributed.is_available():
        raise NoCapacity("This runner's torch is built without torch.distributed: set num_processes to 1.")
    if work.device != "cpu" and not distributed.is_nccl_available():
        raise NoCapacity("This runner's torch is built without NCCL: set num_processes to 1, or device to cpu.")
    if work.device != "cpu" and len(work.others) < count - 1:
        raise NoCapacity(
            f"num_processes {count} needs a GPU for each process, and this job has {1 + len(work.others)}: "
            f"set num_processes to {1 + len(work.others)}, or device to cpu."
        )


def device_of(work: Work[FinetuneSpec], rank: int) -> str:
    """GPUs are one each; a CPU is shared."""
    return work.others[rank - 1] if work.others else work.device


def end_with_the_first(
    followers: Sequence[Follower], say: Callable[[JobFailed], None], is_over: threading.Event
) -> None:
    """From now on, when another process fails and this one does not notice, say why and end it too, from a thread.

    NCCL waits for ever for a process that is gone; a call that is aborted gives numbers that mean nothing, and nothing
    may be made of those. Gloo needs no watching: its connections break.
    """

    def watch() -> None:
        while not is_over.wait(_WATCH_EVERY_S):
            failed = next((follower for follower in followers if follower.has_ended_badly), None)
            if failed is not None and not is_over.wait(_NOTICED_WITHIN_S):
                say(failed.failure())
                return

    threading.Thread(target=watch, name="ranks", daemon=True).start()


def last_word(work: Work[FinetuneSpec], failure: JobFailed) -> None:
    """The journal's, and this process's; a run that is being cancelled has nothing more to say."""
    try:
        if work.stop.wanted != "cancel":
            work.journal.last_word(events.JobFailed, reason=failure.reason, detail=failure.message)
    finally:
        os._exit(1)


def _first_failure(followers: Sequence[Follower]) -> JobFailed | None:
    return next((follower.failure() for follower in followers if follower.has_failed()), None)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, so many that a message is worth its while and its copy is small."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _add_up(gradients: list[Tensor]) -> None:
    """In one message."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, added in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(added.view_as(gradient))


def _ready_key(rank: int) -> str:
    return f"ready-{rank}"
