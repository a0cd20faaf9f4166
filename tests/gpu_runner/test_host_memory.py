"""A container's limit counts as the host's memory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_runner import host_memory
from gpu_runner.host_memory import HostMemory

MIB = 2**20

Write = Callable[..., None]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A host of 64 GiB, 40 of them available, whose process is in these groups; further arguments are files."""
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_OWN_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")

    def write(groups: str, files: dict[str, str]) -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {40 * 2**20} kB\nHugePages: 0\n")
        (tmp_path / "groups").write_text(groups)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return write


def test_without_a_limit_it_is_what_the_kernel_says(host: Write) -> None:
    host("0::/\n", {"memory.max": "max\n", "memory.current": f"{MIB}\n"})
    assert host_memory.read() == HostMemory(64 * 1024 * MIB, 40 * 1024 * MIB)


def test_a_limit_counts_and_the_cache_of_files_does_not(host: Write) -> None:
    files = {"memory.max": f"{800 * MIB}\n", "memory.current": f"{500 * MIB}\n"}
    host("0::/\n", files | {"memory.stat": f"anon {300 * MIB}\ninactive_file {200 * MIB}\n"})
    assert host_memory.read() == HostMemory(800 * MIB, 500 * MIB)


def test_a_limit_of_a_group_above_counts(host: Write) -> None:
    files = {"a/memory.max": f"{800 * MIB}\n", "a/memory.current": f"{500 * MIB}\n"}
    host("0::/a/b\n", files | {"a/b/memory.max": "max\n", "a/b/memory.current": "0\n"})
    assert host_memory.read() == HostMemory(800 * MIB, 300 * MIB)


def test_the_first_version_of_control_groups_tells_as_well(host: Write) -> None:
    files = {"limit_in_bytes": f"{800 * MIB}\n", "usage_in_bytes": f"{900 * MIB}\n"}
    host("5:cpu:/x\n4:memory:/x\n0::/\n", {f"memory/memory.{name}": content for name, content in files.items()})
    assert host_memory.read() == HostMemory(800 * MIB, 0)


def test_a_system_that_tells_nothing_is_not_known(host: Write, tmp_path: Path) -> None:
    host("", {})
    (tmp_path / "meminfo").unlink()
    assert host_memory.read() == HostMemory(None, None)
