"""Spreading work over forked processes, for what threads cannot speed up: Python code between short pieces of C.

Used by the validate recipe. Results come back in order through pipes, whose size keeps a process from running ahead.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import NamedTuple, TypeVar

from gpu_runner import processes

T = TypeVar("T")

_BATCH = 8  # results sent at once: large enough to cost little, small enough that several fit into a pipe
_WORTH_A_FORK = 20 * _BATCH


def map_in_order(function: Callable[[int], T], count: int, cores: int) -> Iterator[T]:
    """`function` of 0 … count - 1, in order, made by as many processes as there are cores.

    The function and what it refers to is inherited, its results are pickled. With one core, or little to do, it is
    called right here.

    Raises:
        MemoryError: the kernel killed a process.
        RuntimeError: a process failed; its traceback is on stderr.
    """
    if cores < 2 or count < _WORTH_A_FORK:
        yield from map(function, range(count))
        return
    crew: list[_Member] = []
    try:
        for number in range(cores):
            crew.append(_start(function, range(number * _BATCH, count, cores * _BATCH), count))
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


def _start(function: Callable[[int], T], begins: range, count: int) -> _Member:
    results, answers = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_serve, args=(function, begins, count, answers, os.getpid()), daemon=True)
    process.start()
    answers.close()
    return _Member(process, results)


def _serve(function: Callable[[int], T], begins: range, count: int, answers: Connection, parent: int) -> None:
    processes.die_with_parent(parent)
    for begin in begins:
        answers.send([function(index) for index in range(begin, min(begin + _BATCH, count))])


def _receive(member: _Member) -> list[T]:
    try:
        batch: list[T] = member.results.recv()
    except EOFError:
        member.process.join()
        if member.process.exitcode == -signal.SIGKILL:
            raise MemoryError from None
        raise RuntimeError(f"a helping process ended with status {member.process.exitcode}") from None
    return batch


_FORK = multiprocessing.get_context("fork")
