"""The lock file of an attempt: `runners/<runner>/<job>.<attempt>.lock`, locked as long as anything of it lives.

The child inherits the locked descriptor and so does whatever it forks; the environment of a forked process cannot
tell what it belongs to, this can. The files are also the index of what a runner holds across its own death.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_runner import processes

_SUFFIX = ".lock"
_LOOK_EVERY_S = 0.005


class AttemptLock:
    """One lock file below the runner's folder."""

    def __init__(self, folder: Path, job_id: str, attempt: int) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.path = folder / f"{job_id}.{attempt}{_SUFFIX}"

    def create(self) -> None:
        """From now on the attempt is held, whatever happens to the runner."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def take(self) -> int:
        """A locked descriptor to hand to the child; the caller closes its own copy.

        Raises:
            BlockingIOError: something of this attempt lives.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def is_free(self) -> bool:
        """Whether nothing of the attempt lives."""
        try:
            os.close(self.take())
        except BlockingIOError:
            return False
        return True

    def end_survivors(self, within_s: float = 5.0) -> bool:
        """Kill whoever holds the lock file; blocks. True when nothing of the attempt lives any more."""
        deadline = time.monotonic() + within_s
        while not self.is_free():
            if time.monotonic() > deadline:
                return False
            for pid in self._holders():
                processes.kill(pid)
            time.sleep(_LOOK_EVERY_S)
        return True

    def _holders(self) -> Iterator[int]:
        wanted = str(self.path.resolve())
        return (pid for pid in processes.pids() if pid != os.getpid() and _has_open(pid, wanted))


def locks_in(folder: Path) -> list[AttemptLock]:
    """The attempts a runner held when it was last alive, in the order they were taken on."""
    found = sorted(folder.glob(f"*.*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    named = [path.name.removesuffix(_SUFFIX).rpartition(".") for path in found]
    return [AttemptLock(folder, job_id, int(attempt)) for job_id, _, attempt in named if attempt.isdigit()]


def _has_open(pid: int, path: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)  # noqa: PTH208 - names are all it needs
    except OSError:
        return False
    return any(_target(f"{folder}/{descriptor}") == path for descriptor in descriptors)


def _target(link: str) -> str | None:
    try:
        return os.readlink(link)  # noqa: PTH115 - a Path would cost more than the call, a thousand times
    except OSError:
        return None
