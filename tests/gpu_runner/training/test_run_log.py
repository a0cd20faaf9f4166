"""The run log: the training never waits for it, and nothing is lost or out of order."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_runner.journal import Journal
from gpu_runner.training.device import Compute
from gpu_runner.training.plan import Plan
from gpu_runner.training.run_log import RunLog
from jobs import events
from jobs.paths import AttemptFolder, DataRoot

PLAN = Plan(rows=8, batch_size=2, accumulation=1, epochs=5, max_steps=None, seed=1)


@pytest.fixture
def folder(root: DataRoot) -> AttemptFolder:
    folder = root.attempt("job", 1)
    folder.folder.mkdir(parents=True)
    return folder


@pytest.fixture
def journal(root: DataRoot, folder: AttemptFolder) -> Journal:
    return Journal(root, folder, "job")


def log_of(journal: Any) -> RunLog:
    return RunLog(journal, None, PLAN, Compute(torch.device("cpu"), torch.float32), 0)


def lines(folder: AttemptFolder) -> list[Any]:
    return [events.decode_event(line) for line in folder.journal.read_bytes().splitlines()]


class Stuck:
    """A journal on a disk that takes nothing until it is released."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.released = threading.Event()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def method(*given: Any, **more: Any) -> None:
            assert self.released.wait(20)
            getattr(self._journal, name)(*given, **more)

        return method


def test_a_disk_that_hangs_holds_up_no_step_and_loses_no_line(journal: Journal, folder: AttemptFolder) -> None:
    stuck = Stuck(journal)
    with log_of(stuck) as log:
        began = time.monotonic()
        for step in range(1, 101):
            log.stepped(0.1, 10)
            log.progress(step)
            log.log_training(step, 1.0 / step, 1e-3, 0.5, 0)
        assert time.monotonic() - began < 5
        assert lines(folder) == []
        stuck.released.set()
    assert [event.step for event in lines(folder)] == list(range(1, 101))
    assert [event.n for event in lines(folder)] == list(range(1, 101))


def test_what_was_said_before_a_sync_is_in_the_file_after_it(journal: Journal, folder: AttemptFolder) -> None:
    with log_of(journal) as log:
        log.phase("training")
        for step in range(50):
            log.log(step, {"train_loss": 1.0})
        log.sync()
        assert len(lines(folder)) == 51


def test_a_full_disk_reaches_the_training_and_nothing_is_written_behind_the_gap(
    journal: Journal, folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.metrics

    def metrics(self: Journal, step: int, *given: Any, **more: Any) -> None:
        if step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, step, *given, **more)

    monkeypatch.setattr(Journal, "metrics", metrics)
    with pytest.raises(OSError, match="No space"):
        log_three_and_sync(journal)
    assert [event.step for event in lines(folder)] == [1]


def test_a_full_disk_at_the_very_end_is_not_swallowed(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "phase", fail)
    with pytest.raises(OSError, match="No space"), log_of(journal) as log:
        log.phase("training")


def test_the_error_of_the_training_wins_and_what_was_said_before_it_stays(
    journal: Journal, folder: AttemptFolder
) -> None:
    with pytest.raises(ValueError, match="planned"):
        begin_and_fail(journal)
    assert [event.phase for event in lines(folder)] == ["training"]
    assert not [thread for thread in threading.enumerate() if thread.name == "run-log"]


def log_three_and_sync(journal: Journal) -> None:
    with log_of(journal) as log:
        for step in (1, 2, 3):
            log.log(step, {"train_loss": 1.0})
        log.sync()


def begin_and_fail(journal: Journal) -> None:
    with log_of(journal) as log:
        log.phase("training")
        raise ValueError("planned")


def test_progress_is_told_at_most_four_times_a_second_and_its_last_word_counts(
    root: DataRoot, folder: AttemptFolder, tmp_path: Path
) -> None:
    bell = (tmp_path / "bell").open("wb")
    with bell, log_of(Journal(root, folder, "job", bell.fileno())) as log:
        until = time.monotonic() + 0.7
        step = 0
        while time.monotonic() < until:
            step += 1
            log.progress(step)
            time.sleep(0.01)
    heard = [events.decode_event(line) for line in (tmp_path / "bell").read_bytes().splitlines() if line]
    assert 2 <= len(heard) <= 4
    assert all(isinstance(event, events.JobProgressed) for event in heard)
    assert heard[-1].step > heard[0].step + 10
