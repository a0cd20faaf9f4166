"""Spreading work over forked processes, for what threads cannot speed up: Python code between short pieces of C.

Used by the convert and the validate recipe. Results come back in order through pipes, whose size keeps a process from
running ahead. What the work reads is inherited as well, so it must not rest on the position of an open file, which all
processes share.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import NamedTuple, TypeVar

from gpu_runner import processes

T = TypeVar("T")

_BATCH = 8  # results sent at once: large enough to cost little, small enough that several fit into a pipe
_WORTH_A_FORK = 20 * _BATCH


class Share(NamedTuple):
    """The part of a sequence that one of several processes takes: batches in turn."""

    number: int
    processes: int

    def includes(self, index: int) -> bool:
        return index // _BATCH % self.processes == self.number


def map_in_order(function: Callable[[int], T], count: int, cores: int) -> Iterator[T]:
    """`function` of 0 … count - 1, in order. As `share_in_order`."""
    return share_in_order(lambda share: map(function, filter(share.includes, range(count))), count, cores)


def share_in_order(work: Callable[[Share], Iterable[T]], count: int, cores: int) -> Iterator[T]:
    """What as many processes as there are cores make of `count` things, in order.

    `work` is called in each with its share, and gives one result for each thing in it. It and what it refers to is
    inherited, results are pickled. With one core, or little to do, it is called right here with a share of all. What
    it raises is raised here, after the results before it.

    Raises:
        MemoryError: the kernel killed a process.
        RuntimeError: a process ended in another way; its traceback is on stderr.
    """
    if cores < 2 or count < _WORTH_A_FORK:
        yield from work(Share(0, 1))
        return
    crew: list[_Member] = []
    try:
        for number in range(cores):
            crew.append(_start(work, Share(number, cores)))
        for number in range(-(-count // _BATCH)):
            yield from _receive(crew[number % cores])
    finally:
        for member in crew:
            member.results.close()
            member.process.kill()
            member.process.join()


class _Member(NamedTuple):
    process: ForkProcess
    results: Connection


class _Raised(NamedTuple):
    error: Exception


def _start(work: Callable[[Share], Iterable[T]], share: Share) -> _Member:
    results, answers = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_serve, args=(work, share, answers, os.getpid()), daemon=True)
    process.start()
    answers.close()
    return _Member(process, results)


def _serve(work: Callable[[Share], Iterable[T]], share: Share, answers: Connection, parent: int) -> None:
    processes.die_with_parent(parent)
    batch: list[T | _Raised] = []
    try:
        for result in work(share):
            batch.append(result)
            if len(batch) == _BATCH:
                answers.send(batch)
                batch = []
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # pickling leaves the traceback behind
        batch.append(_Raised(error))
    if batch:
        answers.send(batch)


def _receive(member: _Member) -> Iterator[T]:
    try:
        batch: list[T | _Raised] = member.results.recv()
    except (EOFError, OSError):  # between messages, and in the middle of one
        member.process.join()
        if member.process.exitcode == -signal.SIGKILL:
            raise MemoryError from None
        raise RuntimeError(f"a helping process ended with status {member.process.exitcode}") from None
    for result in batch:
        if isinstance(result, _Raised):
            raise result.error
        yield result


_FORK = multiprocessing.get_context("fork")
