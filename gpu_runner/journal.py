"""The journal of one attempt: `attempt-N/events.jsonl`, one event a line, line k carrying `n` = k.

The child writes it through `Journal`; when the child is gone the supervisor adds the last line with
`append_last`. Every write rings the doorbell, an inherited pipe: a line with nothing on it means "the journal
grew", a line with JSON on it is a `job.progressed`, which is not journalled.
"""

import contextlib
import math
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from jobs import events
from jobs.events import Event
from jobs.paths import AttemptFolder, DataRoot

PROGRESS_EVERY_S = 0.25
_BLOCK_BYTES = 1 << 16
_BALLAST_BYTES = 1 << 16


class Journal:
    """What a recipe says, from any thread. Lines are in the file when a method returns, on the disk after `sync`."""

    def __init__(self, root: DataRoot, folder: AttemptFolder, job_id: str, doorbell: int | None = None) -> None:
        self._root = root
        self._envelope: dict[str, Any] = {"job_id": job_id, "attempt": folder.number}
        self._file = os.open(folder.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._n = count_lines(folder.journal)
        self._lock = threading.RLock()
        self._ballast = folder.ballast
        _take_room(folder.ballast)
        self._doorbell = doorbell
        self._progress_at = -math.inf
        self._phase: str | None = None
        self._begin, self._end = 0.0, 1.0

    def stretch(self, begin: float, end: float) -> None:
        """From here on `progress` speaks of this stretch of the whole job, in shares of it."""
        self._begin, self._end = begin, end

    def phase(self, name: str) -> None:
        """The work enters a new phase: loading, training, evaluating, saving …"""
        self._phase = name
        self._write(events.PhaseEntered, phase=name)

    def note(self, message: str, code: str = "note") -> None:
        """A sentence the user should read."""
        self._write(events.JobNoted, message=message, code=code)

    def progress(
        self,
        step: int,
        total_steps: int,
        *,
        fraction: float | None = None,
        epoch: float | None = None,
        total_epochs: int | None = None,
        eta_s: float | None = None,
    ) -> None:
        """How far the job is; call it as often as you like, at most four a second leave the process."""
        now = time.monotonic()
        if self._doorbell is None or now - self._progress_at < PROGRESS_EVERY_S:
            return
        self._progress_at = now
        done = fraction if fraction is not None else step / max(1, total_steps)
        event = events.JobProgressed(
            at=_now(),
            step=step,
            total_steps=total_steps,
            fraction=self._begin + (self._end - self._begin) * min(1.0, done),
            epoch=epoch,
            total_epochs=total_epochs,
            eta_s=eta_s,
            phase=self._phase,
            **self._envelope,
        )
        self._ring(events.encode(event) + b"\n")

    def metrics(
        self,
        step: int,
        values: dict[str, float],
        *,
        epoch: float | None = None,
        total_steps: int | None = None,
        total_epochs: int | None = None,
    ) -> None:
        """Values of one optimiser step by series name, such as train_loss or eval_loss."""
        self._write(
            events.MetricsLogged,
            step=step,
            values={name: value if math.isfinite(value) else None for name, value in values.items()},
            not_finite={name: _spelled(value) for name, value in values.items() if not math.isfinite(value)},
            epoch=epoch,
            total_steps=total_steps,
            total_epochs=total_epochs,
        )

    @property
    def lines(self) -> int:
        """How many lines it has, which is the `n` of the last one."""
        return self._n

    def repeat(self, event: Event) -> None:
        """Say again, as this attempt's, what an earlier one said."""
        with self._lock:
            self._append(msgspec.structs.replace(event, n=self._n + 1, **self._envelope))

    def resumed(self, step: int) -> None:
        """A later attempt goes on from this step; what earlier ones logged beyond it is void."""
        self._write(events.TrainingResumed, step=step)

    def sample(
        self,
        step: int,
        row_id: str,
        *,
        prompt: str,
        expected: str,
        predicted: str,
        image: str | None = None,
        correct: bool | None = None,
    ) -> None:
        """What the model answers to one fixed row at this step."""
        self._write(
            events.SamplePredicted,
            step=step,
            row_id=row_id,
            prompt=prompt,
            expected=expected,
            predicted=predicted,
            image=image,
            correct=correct,
        )

    def checkpoint(self, step: int, folder: Path, size_bytes: int, metrics: dict[str, float]) -> None:
        """A checkpoint whose manifest is on the disk."""
        self._write(
            events.CheckpointSaved, step=step, path=self._root.name_of(folder), bytes=size_bytes, metrics=metrics
        )

    def checkpoint_removed(self, step: int, folder: Path) -> None:
        self._write(events.CheckpointRemoved, step=step, path=self._root.name_of(folder))

    def artifact(self, kind: str, path: Path, size_bytes: int, sha256: str | None = None) -> None:
        """A file or folder others may use."""
        self._write(events.ArtifactCreated, kind=kind, path=self._root.name_of(path), bytes=size_bytes, sha256=sha256)

    def state(self, kind: type[Event], /, **fields: Any) -> None:
        """A change of the job's state: started, paused, completed, failed. On the disk when this returns, also when
        that is full: then the ballast makes room."""
        try:
            self._write(kind, **fields)
        except OSError:
            self._ballast.unlink(missing_ok=True)
            self._write(kind, **fields)
        self.sync()

    def last_word(self, kind: type[Event], /, **fields: Any) -> None:
        """As `state`, and whoever wants to say more waits for ever: the process is to end now."""
        self._lock.acquire()
        self.state(kind, **fields)

    def sync(self) -> None:
        """Bring all lines to the disk. Call before a manifest is renamed: what rests on a line must not outlive it."""
        os.fsync(self._file)

    def _write(self, kind: type[Event], /, **fields: Any) -> None:
        with self._lock:
            self._append(kind(at=_now(), n=self._n + 1, **self._envelope, **fields))

    def _append(self, event: Event) -> None:
        _append_whole(self._file, events.encode(event) + b"\n")
        self._n += 1
        self._ring(b"\n")

    def _ring(self, line: bytes) -> None:
        if self._doorbell is None:
            return
        try:
            os.write(self._doorbell, line)
        except BlockingIOError:  # the pipe is full: whoever reads it will look at the journal anyway
            pass
        except BrokenPipeError:  # the supervisor is gone; the journal stays true and its successor reads it
            self._doorbell = None


def append_last(folder: AttemptFolder, event: Event) -> int:
    """Add the line that ends a journal whose child is dead, with its `n`; a torn last line is cut off first.

    Returns the journal's last `n`. Nothing is added to a journal that has ended already. Raises OSError.
    """
    folder.ballast.unlink(missing_ok=True)  # the room it took is for this line
    folder.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, _whole_bytes(folder.journal))
        n = count_lines(folder.journal)
        if not has_ended(folder.journal):
            n += 1
            _append_whole(descriptor, events.encode(msgspec.structs.replace(event, n=n)) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return n


def _take_room(ballast: Path) -> None:
    """Where there is none the journal's own lines will say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _BALLAST_BYTES)
        finally:
            os.close(descriptor)


def has_ended(path: Path) -> bool:
    """Whether the last whole line says how the attempt ended."""
    return isinstance(last_event(path), events.ATTEMPT_ENDED)


def count_lines(path: Path) -> int:
    """Whole lines of a journal, which is its last `n`."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def last_event(path: Path) -> Event | None:
    """The last whole line of a journal; None when there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            whole = _whole_bytes(path)
            start = _after_newline(file, whole - 1)
            file.seek(start)
            line = file.read(whole - start)
        event: Event = events.decode_event(line)
        return event
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _whole_bytes(path: Path) -> int:
    """Bytes up to and including the last newline."""
    with path.open("rb") as file:
        return _after_newline(file, file.seek(0, os.SEEK_END))


def _after_newline(file: BinaryIO, end: int) -> int:
    """The position behind the last newline before `end`; 0 without one. Read backwards: journals are long."""
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _append_whole(descriptor: int, line: bytes) -> None:
    """Append a line or nothing: after an error, such as a full disk, the file is as it was."""
    before = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line)
        while written < len(line):  # the next try says why the disk took no more
            written += os.write(descriptor, line[written:])
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _spelled(value: float) -> Literal["nan", "inf", "-inf"]:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def _now() -> datetime:
    return datetime.now(UTC)
