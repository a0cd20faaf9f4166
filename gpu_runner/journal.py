"""The journal of one attempt: `attempt-N/events.jsonl`, one event a line, line k carrying `n` = k.

The child writes it through `Journal`; when the child is gone the supervisor adds the last line with
`append_last`. Every write rings the doorbell, an inherited pipe: a line with nothing on it means "the journal
grew", a line with JSON on it is a `job.progressed`, which is not journalled.
"""

import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jobs import events
from jobs.events import Event
from jobs.paths import AttemptFolder, DataRoot

PROGRESS_EVERY_S = 0.25


class Journal:
    """What a recipe says. Lines are in the file when a method returns, on the disk after `sync`."""

    def __init__(self, root: DataRoot, folder: AttemptFolder, job_id: str, doorbell: int | None = None) -> None:
        self._root = root
        self._envelope: dict[str, Any] = {"job_id": job_id, "attempt": folder.number}
        self._file = os.open(folder.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._n = count_lines(folder.journal)
        self._doorbell = doorbell
        self._progress_at = -math.inf
        self._phase: str | None = None

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
            fraction=min(1.0, done),
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

    def state(self, kind: type[Event], **fields: Any) -> None:
        """A change of the job's state: started, paused, completed, failed. On the disk when this returns."""
        self._write(kind, **fields)
        self.sync()

    def sync(self) -> None:
        """Bring all lines to the disk. Call before a manifest is renamed: what rests on a line must not outlive it."""
        os.fsync(self._file)

    def _write(self, kind: type[Event], **fields: Any) -> None:
        self._n += 1
        line = events.encode(kind(at=_now(), n=self._n, **self._envelope, **fields)) + b"\n"
        os.write(self._file, line)
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

    Returns the journal's last `n`. Nothing is added to a journal that has ended already.
    """
    folder.folder.mkdir(parents=True, exist_ok=True)
    ended = last_event(folder.journal)
    with folder.journal.open("ab") as file:
        whole = _whole_bytes(folder.journal)
        file.truncate(whole)
        n = count_lines(folder.journal)
        if not isinstance(ended, events.ATTEMPT_ENDED):
            n += 1
            envelope = {"job_id": event.job_id, "attempt": event.attempt, "at": event.at, "n": n}
            rest = {name: getattr(event, name) for name in event.__struct_fields__ if name not in envelope}
            file.write(events.encode(type(event)(**envelope, **rest)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return n


def count_lines(path: Path) -> int:
    """Whole lines of a journal, which is its last `n`."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def last_event(path: Path) -> Event | None:
    """The last whole line of a journal; None when there is none."""
    try:
        lines = path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")
    except FileNotFoundError:
        return None
    return events.decode_event(lines[2]) if lines[2] else None


def _whole_bytes(path: Path) -> int:
    """Bytes up to and including the last newline."""
    return len(path.read_bytes().rpartition(b"\n")[0] + b"\n") if count_lines(path) else 0


def _spelled(value: float) -> Literal["nan", "inf", "-inf"]:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"


def _now() -> datetime:
    return datetime.now(UTC)
