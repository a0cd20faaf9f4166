"""Whether the kernel's out-of-memory killer was at work: a SIGKILL alone does not say who sent it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_runner import host_memory


def count_kills() -> int:
    """Processes killed for lack of memory so far: in our control group if it counts them, else on the whole host."""
    for path in _counters():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


class OomKills:
    """Which deaths such kills explain: each kill explains one."""

    def __init__(self, count: Callable[[], int] = count_kills) -> None:
        self.count = count
        self._explained = 0

    def explain_one(self, since: int) -> bool:
        """Whether there was a kill since the count was `since` that has explained no other death."""
        self._explained = max(self._explained, since)
        if self.count() <= self._explained:
            return False
        self._explained += 1
        return True


def _counters() -> Iterator[Path]:
    """Source: cgroup-v2.rst (memory.events), cgroup-v1/memory.rst (memory.oom_control), /proc/vmstat."""
    for folder in host_memory.groups():
        yield folder / "memory.events"
        yield folder / "memory.oom_control"
    yield Path("/proc/vmstat")
