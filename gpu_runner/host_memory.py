"""How much memory this host has for us: the kernel's figures, or those of a control group that allows less, as that of
a container does. Used for the report of devices and wherever a job asks before it takes much.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")

_FILES = (  # of version 2 and of version 1: the limit, what is used, and what of that is a cache the kernel gives up
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class HostMemory(NamedTuple):
    """Bytes in all, and those that can still be had; None where the system does not tell."""

    total: int | None
    available: int | None


def read() -> HostMemory:
    """What is there at this moment."""
    meminfo = _numbers(_MEMINFO)
    totals, free = [_bytes(meminfo, "MemTotal")], [_bytes(meminfo, "MemAvailable")]
    for folder in _with_parents():
        for limit_file, used_file, cache in _FILES:
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and used is not None:
                totals.append(limit)
                free.append(max(0, limit - used + _numbers(folder / "memory.stat").get(cache, 0)))
    return HostMemory(_least(totals), _least(free))


def groups() -> Iterator[Path]:
    """The folders of the control groups that count our memory, the nearest first.

    Source: cgroup-v2.rst, cgroup-v1/memory.rst.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield _CGROUPS / group.lstrip("/")
        elif "memory" in controllers.split(","):
            yield _CGROUPS / "memory" / group.lstrip("/")
            yield _CGROUPS / "memory"  # a container sees its own group as the root


def _with_parents() -> Iterator[Path]:
    """A limit of a group holds for all below it."""
    for folder in groups():
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(_CGROUPS))


def _least(known: list[int | None]) -> int | None:
    return min((size for size in known if size is not None), default=None)


def _bytes(meminfo: dict[str, int], name: str) -> int | None:
    """Source: proc_meminfo(5), which counts KiB."""
    return meminfo[name] * 1024 if name in meminfo else None


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file of names and numbers; none where it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split()[:2] for line in lines)
    return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    """None where it cannot be read, and for the word `max`, which is no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
