"""Work spread over processes: results in order, faults heard, nobody left over."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from gpu_runner import forks
from gpu_runner.forks import Share
from jobs.errors import DatasetInvalid


def test_results_come_in_order_from_several_processes() -> None:
    made = list(forks.map_in_order(lambda number: (number, os.getpid()), 1003, 3))
    assert [number for number, _ in made] == list(range(1003))
    assert len({pid for _, pid in made}) == 3
    assert os.getpid() not in {pid for _, pid in made}


@pytest.mark.parametrize(("count", "cores"), [(1003, 1), (20, 4), (0, 2)])
def test_little_work_and_a_single_core_need_no_process(count: int, cores: int) -> None:
    made = list(forks.map_in_order(lambda number: (number, os.getpid()), count, cores))
    assert made == [(number, os.getpid()) for number in range(count)]


def test_each_process_goes_through_all_and_takes_its_share() -> None:
    passed = multiprocessing.get_context("fork").Value("i", 0)

    def work(share: Share) -> Iterator[tuple[int, int]]:
        for number in range(1003):
            with passed:
                passed.value += 1
            if share.includes(number):
                yield number, share.number

    made = list(forks.share_in_order(work, 1003, 3))
    assert [number for number, _ in made] == list(range(1003))
    assert {share for _, share in made} == {0, 1, 2}
    assert passed.value == 3 * 1003


@pytest.mark.parametrize("cores", [1, 3])
def test_what_is_raised_comes_after_the_results_before_it_whoever_raises_first(cores: int) -> None:
    def fail(number: int) -> int:
        if number < 300:
            time.sleep(0.0005)
        if number in (300, 310, 350):
            raise DatasetInvalid(f"row {number}")
        return number

    results = forks.map_in_order(fail, 1000, cores)
    assert [next(results) for _ in range(300)] == list(range(300))
    with pytest.raises(DatasetInvalid) as raised:
        next(results)
    assert cores == 1 or "in fail" in raised.value.__notes__[0]


def _dies_at(number: int, how: int) -> Iterator[object]:
    def die(at: int) -> int:
        if at == number:
            os.kill(os.getpid(), how)
        return at

    return forks.map_in_order(die, 1000, 2)


def test_the_death_of_a_process_is_heard_and_a_kill_is_lack_of_memory() -> None:
    with pytest.raises(MemoryError):
        list(_dies_at(500, signal.SIGKILL))
    with pytest.raises(RuntimeError, match="ended with status"):
        list(_dies_at(500, signal.SIGTERM))


def test_a_kill_in_the_middle_of_a_message_is_heard_as_one() -> None:
    results = forks.map_in_order(lambda number: bytes(1 << 20), 1000, 2)
    next(results)
    time.sleep(0.2)  # more is on its way than a pipe takes: both processes stand within a message
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(MemoryError):
        list(results)


def test_whoever_stops_early_leaves_no_process() -> None:
    made = forks.map_in_order(lambda number: os.getpid(), 100_000, 2)
    pid = next(made)
    made.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
