"""Lines of a file are those that anybody would see in it."""

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_runner import lines
from gpu_runner.lines import Lines


@given(content=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"{}"]), max_size=30).map(b"".join))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_those_between_newlines_without_blank_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lines, "_SCAN_BYTES", 4)  # so that every kind of line crosses the border of a block
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    found = Lines(file)
    assert [found[at] for at in range(len(found))] == [
        line for line in content.split(b"\n") if line not in (b"", b"\r")
    ]


def count_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_file_is_closed_when_nobody_needs_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"{}\n")
    gc.collect()  # of what other tests left
    before = count_open_files()
    found = Lines(file)
    assert len(found) == 1
    assert count_open_files() == before + 1
    del found
    gc.collect()
    assert count_open_files() == before
