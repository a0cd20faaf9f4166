"""The journal of an attempt: dense, whole lines, one ending."""

import errno
import fcntl
import os
from datetime import UTC, datetime

import pytest

from gpu_runner import journal
from gpu_runner.journal import Journal, append_last, count_lines, has_ended, last_event
from jobs import events
from jobs.errors import FailureReason
from jobs.paths import AttemptFolder, DataRoot
from jobs.results import GenerateResult


@pytest.fixture
def root(tmp_path) -> DataRoot:
    return DataRoot(tmp_path)


@pytest.fixture
def folder(root) -> AttemptFolder:
    folder = root.attempt("job", 2)
    folder.folder.mkdir(parents=True)
    return folder


@pytest.fixture
def doorbell():
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


def read(folder: AttemptFolder) -> list[events.Event]:
    return [events.decode_event(line) for line in folder.journal.read_bytes().splitlines()]


def interrupted(cause: str = "the machine stopped") -> events.JobInterrupted:
    return events.JobInterrupted(job_id="job", attempt=2, at=datetime.now(UTC), cause=cause)


def test_lines_are_numbered_from_one_and_carry_their_attempt(root, folder) -> None:
    said = Journal(root, folder, "job")
    said.phase("loading")
    said.note("something", "code")
    said.metrics(1, {"train_loss": 0.5})
    said.checkpoint(1, folder.checkpoints / "step-1", 10, {"eval_loss": 1.0})
    said.artifact("report", folder.report, 3)
    said.state(events.JobCompleted, result=GenerateResult(answers=()))
    assert [(event.n, event.job_id, event.attempt) for event in read(folder)] == [(n, "job", 2) for n in range(1, 7)]
    assert read(folder)[3].path == "jobs/job/attempt-2/checkpoints/step-1"


def test_a_journal_that_is_opened_again_goes_on_counting(root, folder) -> None:
    Journal(root, folder, "job").phase("one")
    Journal(root, folder, "job").phase("two")
    assert [event.n for event in read(folder)] == [1, 2]


@pytest.mark.parametrize(("value", "spelled"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_a_value_that_is_no_number_is_null_and_named(root, folder, value, spelled) -> None:
    Journal(root, folder, "job").metrics(3, {"train_loss": value, "lr": 0.1})
    (event,) = read(folder)
    assert event.values == {"train_loss": None, "lr": 0.1}
    assert event.not_finite == {"train_loss": spelled}


def test_each_line_rings_and_progress_travels_through_the_pipe_alone(root, folder, doorbell) -> None:
    said = Journal(root, folder, "job", doorbell[1])
    said.phase("training")
    for step in range(1000):
        said.progress(step, 1000)
    bell, progress, end = os.read(doorbell[0], 65536).split(b"\n")
    assert (bell, end) == (b"", b"")
    event = events.decode_event(progress)
    assert (event.n, event.phase, event.step) == (None, "training", 0)
    assert count_lines(folder.journal) == 1


def test_a_full_or_closed_pipe_stops_nobody(root, folder) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    said = Journal(root, folder, "job", write_end)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_end, b"x" * 4096)
    said.phase("full")
    os.close(read_end)
    said.phase("closed")
    said.phase("still")
    os.close(write_end)
    assert [event.phase for event in read(folder)] == ["full", "closed", "still"]


def test_a_line_the_disk_has_no_room_for_is_not_there_at_all(root, folder, monkeypatch) -> None:
    said = Journal(root, folder, "job")
    said.phase("before")
    write, room = os.write, [10]

    def cramped(descriptor: int, line: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, line[: room.pop()])

    monkeypatch.setattr(journal.os, "write", cramped)
    with pytest.raises(OSError, match="No space"):
        said.phase("during")
    monkeypatch.undo()
    said.phase("after")
    assert [(event.n, event.phase) for event in read(folder)] == [(1, "before"), (2, "after")]


def test_on_a_full_disk_the_ballast_makes_room_for_the_last_words(root, folder, monkeypatch) -> None:
    writer = Journal(root, folder, "job")
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if folder.ballast.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        writer.phase("training")
    writer.state(events.JobFailed, reason=FailureReason.DISK_FULL, detail="Free some space.")
    assert [line.n for line in map(events.decode_event, folder.journal.read_bytes().splitlines())] == [1]
    assert has_ended(folder.journal)


def test_the_runner_has_that_room_too_and_nothing_of_it_stays(root, folder) -> None:
    Journal(root, folder, "job")
    assert folder.ballast.stat().st_blocks * 512 >= 1 << 16
    append_last(folder, events.JobInterrupted(job_id="job", attempt=1, at=datetime.now(UTC), cause="killed"))
    assert not folder.ballast.exists()


def test_the_last_line_is_added_once_with_its_number(root, folder) -> None:
    Journal(root, folder, "job").phase("loading")
    assert append_last(folder, interrupted()) == 2
    assert append_last(folder, interrupted("another")) == 2
    assert [event.n for event in read(folder)] == [1, 2]
    assert read(folder)[-1].cause == "the machine stopped"


def test_what_the_child_said_last_stands(root, folder) -> None:
    Journal(root, folder, "job").state(events.JobFailed, reason=FailureReason.INTERNAL, detail="x")
    assert append_last(folder, interrupted()) == 1
    assert isinstance(last_event(folder.journal), events.JobFailed)


def test_a_torn_last_line_is_cut_off(root, folder) -> None:
    Journal(root, folder, "job").phase("loading")
    with folder.journal.open("ab") as file:
        file.write(b'{"type":"job.completed","job_id":"jo')
    assert not has_ended(folder.journal)
    assert append_last(folder, interrupted()) == 2
    assert [type(event) for event in read(folder)] == [events.PhaseEntered, events.JobInterrupted]


def test_an_attempt_without_a_folder_gets_a_journal_of_one_line(root) -> None:
    folder = root.attempt("new", 1)
    assert append_last(folder, interrupted()) == 1
    assert has_ended(folder.journal)


def test_a_journal_of_garbage_counts_as_not_ended(folder) -> None:
    folder.journal.write_bytes(b"\xff\xfe garbage\n")
    assert last_event(folder.journal) is None
    assert append_last(folder, interrupted()) == 2


def test_a_last_line_longer_than_a_block_is_found(root, folder) -> None:
    said = Journal(root, folder, "job")
    said.phase("loading")
    said.state(events.JobFailed, reason=FailureReason.INTERNAL, detail="x" * 200_000)
    assert has_ended(folder.journal)
    with folder.journal.open("ab") as file:
        file.write(b"y" * 200_000)
    assert append_last(folder, interrupted()) == 2


def test_nothing_is_read_from_a_journal_that_is_not_there(tmp_path) -> None:
    assert count_lines(tmp_path / "none") == 0
    assert last_event(tmp_path / "none") is None
