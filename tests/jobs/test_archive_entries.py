"""Entries are found as `zipfile` would find them, in a fraction of the memory."""

import io
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.archive_entries import Entries


def infos_of(*contents: tuple[str, bytes]) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents:
            archive.writestr(name, content)
        return archive.infolist()


NAMES = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
    unique_by=str.casefold,
    max_size=20,
)


@given(NAMES)
def test_each_entry_is_found_by_its_name_and_in_its_place(names: list[str]) -> None:
    infos = infos_of(*((name, name.encode() * 3) for name in names))
    entries = Entries(infos)
    assert [entry.filename for entry in entries] == [info.filename for info in infos]
    for info in infos:
        entry = entries[info.filename]
        for part in ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits"):
            assert getattr(entry, part) == getattr(info, part)
        assert (found := entries.find(info.filename.casefold())) is not None
        assert found.filename == info.filename


def test_a_name_that_is_not_there_is_not_found() -> None:
    entries = Entries(infos_of(("Frames/a.PNG", b"1"), ("b.png", b"2")))
    assert entries.find("c.png") is None
    with pytest.raises(KeyError):
        entries["frames/a.png"]  # another spelling is found, but is no name


def test_names_with_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.archive_entries._key", lambda _: 7)
    entries = Entries(infos_of(("a.png", b"1"), ("b.png", b"22"), ("c.png", b"333")))
    assert [entries[name].file_size for name in ("a.png", "b.png", "c.png")] == [1, 2, 3]
    assert entries.find("d.png") is None


def test_an_entry_takes_a_fifth_of_what_zipfile_keeps_of_it() -> None:
    infos = infos_of(*((f"video_0000/images/frame_{number:06d}.png", b"") for number in range(5_000)))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        entries = Entries(infos)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert entries.find("video_0000/images/frame_004999.png")
    assert (after - before) / len(infos) < 120
