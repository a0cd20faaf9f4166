"""Work in a process of its own, so that what it takes is its own too. For the tests of hostile data."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

MOST_BYTES, MOST_S = 256 << 20, 10.0

_FORK = multiprocessing.get_context("fork")
_RSS_UNIT = 1 if sys.platform == "darwin" else 1 << 10


class Measured(NamedTuple):
    """What the work gave or raised, how many bytes it made the process grow at most, and its seconds of CPU."""

    outcome: Any
    grown_bytes: int
    cpu_s: float


def in_a_child(work: Callable[[], Any]) -> Measured:
    results, answers = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_measure, args=(work, answers))
    process.start()
    answers.close()
    try:
        assert results.poll(10 * MOST_S), "it hangs"  # of time that passes: the machine may be busy
        return results.recv()  # type: ignore[no-any-return]  # what the child computed
    finally:
        process.kill()
        process.join()
        results.close()


def _measure(work: Callable[[], Any], answers: "Connection[Measured, Measured]") -> None:
    before = _peak()
    try:
        outcome = work()
    except BaseException as error:
        outcome = error
    answers.send(Measured(outcome, _peak() - before, time.process_time()))  # a process begins with no time


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
