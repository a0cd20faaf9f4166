"""Owning processes on Linux: who is whose child, who is left over, and how to end all of it.

Used by the zygote, its children and the runner. A process whose parent died is re-parented to the nearest
*subreaper* above it; zygote and runner are subreapers, so what appears there unasked belongs to nobody.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Source: prctl(2)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # resolved before any fork
_LOOK_EVERY_S = 0.002


class ProcessState(NamedTuple):
    """The fields of /proc/<pid>/stat that tell who owns a process. Source: proc_pid_stat(5)."""

    pid: int
    letter: str
    parent: int
    session: int

    @property
    def is_dead(self) -> bool:
        """A zombie only waits for its parent to look."""
        return self.letter in "ZX"


def adopt_orphans(wanted: bool = True) -> None:
    """Become the parent of descendants whose own parent dies, or stop being it."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies; leaves at once if it is dead already."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`: from now on this process notices its parent's death itself."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def state_of(pid: int) -> ProcessState | None:
    """None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return ProcessState(pid, fields[0], int(fields[1]), int(fields[3]))


def orphans(owned: Collection[int]) -> Iterator[ProcessState]:
    """Children of this process that it did not start: other sessions than its own, not among `owned`."""
    me, session = os.getpid(), os.getsid(0)
    for pid in pids():
        if pid not in owned:
            state = state_of(pid)
            if state is not None and state.parent == me and state.session != session:
                yield state


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names are all it needs


def sessions(leaders: Collection[int]) -> dict[int, list[int]]:
    """The living processes of the sessions that these processes lead."""
    found: dict[int, list[int]] = {leader: [] for leader in leaders}
    for pid in pids() if leaders else ():
        state = state_of(pid)
        if state is not None and not state.is_dead and state.session in found:
            found[state.session].append(pid)
    return found


def memory_bytes(of: Collection[int]) -> int | None:
    """Resident memory of processes, what they share with others counted in part; None where that cannot be read.

    Source: proc(5), /proc/<pid>/smaps_rollup: Pss in KiB.
    """
    found = 0
    for pid in of:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (ProcessLookupError, FileNotFoundError):  # it has just ended
            continue
        except OSError:
            return None
        found += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found


def kill_session(leader: int) -> None:
    """Kill a process that leads its session, with its group; harmless when it is gone or leads nothing yet."""
    for kill in (os.killpg, os.kill):
        try:
            kill(leader, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def reap_orphans(owned: Collection[int]) -> None:
    """Let the dead among the orphans go."""
    for orphan in orphans(owned):
        if orphan.is_dead:
            _reap(orphan.pid)


def sweep(owned: Collection[int], within_s: float = 4.0) -> bool:
    """Kill and reap all orphans. True when none is left: killing one may hand its own children to us."""
    deadline = time.monotonic() + within_s
    while left := list(orphans(owned)):
        if time.monotonic() > deadline:
            return False
        for orphan in left:
            if not orphan.is_dead:
                kill(orphan.pid)
            _reap(orphan.pid)
        time.sleep(_LOOK_EVERY_S)
    return True


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
