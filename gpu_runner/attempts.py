"""The attempts a runner holds: queued, running, or finished and not yet let go by the service.

A lock file each is their index on disk, so a runner that was killed knows what it held when it starts again.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from gpu_runner import journal, staging
from gpu_runner.forker import Child
from gpu_runner.survivors import AttemptLock, locks_in
from jobs import commands, events
from jobs.commands import Start
from jobs.events import Event
from jobs.paths import AttemptFolder, DataRoot
from jobs.specs import Slot, slot_of

Key = tuple[str, int]
Who = Literal["cancel", "stopping"]
"""Who wants an attempt to end early: a user, or the runner."""


@dataclass(kw_only=True)
class Attempt:
    """One held attempt. `slot` and `device` mean nothing where it is only held to be reported.

    `old_n` journal lines are of an earlier life of this runner, which published them or left them to a resend.
    `claimed`: arq brought it to the supervisor. `ending`: who wants it to end early.
    """

    job_id: str
    number: int
    root: DataRoot
    lock: AttemptLock
    slot: Slot = Slot.CPU
    device: str = ""
    state: Literal["queued", "running", "finished"] = "queued"
    last_n: int = 0
    old_n: int = 0
    claimed: bool = False
    ending: Who | None = None
    child: Child | None = None
    last_resort: asyncio.TimerHandle | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> Key:
        return self.job_id, self.number

    @property
    def folder(self) -> AttemptFolder:
        return self.root.attempt(self.job_id, self.number)

    @property
    def name(self) -> str:
        return f"{self.job_id}:{self.number}"

    def event(self, kind: type[Event], **fields: Any) -> Event:
        """An event about this attempt; the journal gives it its `n`."""
        return kind(job_id=self.job_id, attempt=self.number, at=datetime.now(UTC), **fields)

    def conclude(self, last: Event) -> None:
        """Remove what a killed child was making and give the journal its last line unless it has one; from now on the
        attempt is finished. Raises OSError."""
        staging.remove(self.root, self.job_id, self.number)
        self.last_n = journal.append_last(self.folder, last)
        self.state = "finished"
        self.child = None


class Attempts:
    """All held attempts, in the order they came."""

    def __init__(self, root: DataRoot, runner_id: str) -> None:
        self._root = root
        self._folder = root.runner(runner_id)
        self._held: dict[Key, Attempt] = {}

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._held.values()))

    def get(self, job_id: str, number: int) -> Attempt | None:
        return self._held.get((job_id, number))

    def waiting(self) -> list[Attempt]:
        """Those that should be in arq's queue."""
        return [attempt for attempt in self if attempt.state == "queued" and not attempt.claimed and not attempt.ending]

    async def take_on(self, start: Start) -> Attempt:
        """Hold what a command describes: queued, or finished where there is a journal already. Raises OSError.

        Nobody sees the attempt before it is whole and on the disk.
        """
        attempt = self._made(AttemptLock(self._folder, start.job_id, start.attempt))
        attempt.slot, attempt.device = slot_of(start.spec), start.device
        await asyncio.to_thread(_write_down, attempt, start)
        self._held[attempt.key] = attempt
        return attempt

    def recover(self) -> list[Attempt]:
        """Hold again what an earlier run of this runner held, after ending what survived of it; blocks."""
        found = []
        for lock in locks_in(self._folder):
            attempt = self._made(lock)
            is_over = lock.end_survivors()
            cause = "the runner was restarted" if is_over else "the runner was restarted; a process did not end"
            _conclude_old(attempt, cause)
            self._held[attempt.key] = attempt
            found.append(attempt)
        return found

    def forget(self, attempt: Attempt) -> None:
        attempt.lock.remove()
        del self._held[attempt.key]

    def _made(self, lock: AttemptLock) -> Attempt:
        return Attempt(job_id=lock.job_id, number=lock.attempt, root=self._root, lock=lock)


def _write_down(attempt: Attempt, start: Start) -> None:
    if attempt.folder.journal.exists():
        attempt.lock.create()
        _conclude_old(attempt, "the runner had let go of the attempt")
    else:
        _write_start(attempt.folder, start)
        attempt.lock.create()


def _conclude_old(attempt: Attempt, cause: str) -> None:
    attempt.old_n = journal.count_lines(attempt.folder.journal)
    attempt.conclude(attempt.event(events.JobInterrupted, cause=cause))


def _write_start(folder: AttemptFolder, start: Start) -> None:
    """Whole or not at all."""
    folder.folder.mkdir(parents=True, exist_ok=True)
    draft = folder.start.with_suffix(".draft")
    draft.write_bytes(commands.encode(start))
    draft.replace(folder.start)
