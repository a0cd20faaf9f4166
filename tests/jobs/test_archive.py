"""Hostile and broken archives are refused before anything of them is written."""

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from jobs.archive import Archive
from jobs.errors import DatasetInvalid
from jobs.settings import Settings


def archive_of(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return content.getvalue()


def moded(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


def renamed(content: bytes, old: bytes, new: bytes, *, central_only: bool = False) -> bytes:
    """Change a name without the library's help, which would refuse or normalise it."""
    assert len(old) == len(new)
    if central_only:
        at = content.rindex(old)
        return content[:at] + new + content[at + len(old) :]
    return content.replace(old, new)


PLAIN = archive_of(("a.txt", b"hello"))

HOSTILE = {
    "a parent folder": archive_of(("../x", b"1")),
    "a parent folder in the middle": archive_of(("a/../../x", b"1")),
    "an absolute name": archive_of(("/etc/x", b"1")),
    "a drive": archive_of(("C:/x", b"1")),
    "backslashes": renamed(archive_of(("a/../b", b"1")), b"a/../b", b"a\\..\\b"),
    "a NUL in the name": renamed(archive_of(("aXb.txt", b"1")), b"aXb.txt", b"a\0b.txt"),
    "a name that is too long": archive_of(("a" * 300, b"1")),
    "a dot as name": archive_of(("./x", b"1")),
    "an empty part": archive_of(("a//x", b"1")),
    "a line break in the name": archive_of(("a\nb", b"1")),
    "a symbolic link": archive_of((moded("link", stat.S_IFLNK | 0o777), b"/etc/passwd")),
    "a device": archive_of((moded("dev", stat.S_IFBLK | 0o600), b"")),
    "a pipe": archive_of((moded("pipe", stat.S_IFIFO | 0o600), b"")),
    "setuid bits": archive_of((moded("tool", stat.S_IFREG | 0o4755), b"x")),
    "a name twice": renamed(archive_of(("a.txt", b"1"), ("b.txt", b"2")), b"b.txt", b"a.txt"),
    "case twins": archive_of(("a.txt", b"1"), ("A.txt", b"2")),
    "unicode twins": archive_of(("caf\u00e9", b"1"), ("cafe\u0301", b"2")),
    "a file that is a folder too": archive_of(("a", b"1"), ("a/b", b"2")),
    "another name in the local header": renamed(PLAIN, b"a.txt", b"b.txt", central_only=True),
    "bytes in front": b"#!/bin/sh\n" + PLAIN,
    "bytes behind": PLAIN + b"x",
    "two archives glued": PLAIN + archive_of(("b.txt", b"2")),
    "a cut end": PLAIN[:-5],
    "only its first half": PLAIN[: len(PLAIN) // 2],
    "no archive": b"not a zip at all",
    "nothing": b"",
    "LZMA": archive_of(("a.txt", b"hello"), method=zipfile.ZIP_LZMA),
    "BZ2": archive_of(("a.txt", b"hello"), method=zipfile.ZIP_BZIP2),
    "zeros of a thousand times their size": archive_of(("zeros", bytes(8 << 20))),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_archive_is_refused_that_holds(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.zip"
    path.write_bytes(content)
    with pytest.raises(DatasetInvalid, match="refused"):
        Archive(path, Settings())
    assert os.listdir(tmp_path) == ["hostile.zip"]  # noqa: PTH208


def test_an_archive_with_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "locked.zip"
    content = bytearray(PLAIN)
    at = content.rindex(b"PK\x01\x02") + 8  # the flags in the directory
    content[at] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetInvalid, match="encrypted"):
        Archive(path, Settings())


def test_two_end_records_that_both_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.zip"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)
    content = bytearray(PLAIN)
    content[-2:] = struct.pack("<H", len(end))
    path.write_bytes(bytes(content) + end)
    with pytest.raises(DatasetInvalid, match="two end records"):
        Archive(path, Settings())


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "overlap.zip"
    content = archive_of(("a.txt", b"1" * 50), ("b.txt", b"2" * 50), method=zipfile.ZIP_STORED)
    second = content.rindex(b"PK\x01\x02")
    forged = bytearray(content)
    struct.pack_into("<L", forged, content.index(b"PK\x01\x02") + 20, 10_000)  # the first one's size, beyond the second
    assert second > 0
    path.write_bytes(bytes(forged))
    with pytest.raises(DatasetInvalid, match="same bytes"):
        Archive(path, Settings())


def test_more_entries_than_allowed_are_refused_before_the_directory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(archive_of(*((f"{number}.txt", b"") for number in range(20))))
    with pytest.raises(DatasetInvalid, match="20 entries, 10 are allowed"):
        Archive(path, Settings(archive_max_entries=10))


def test_more_bytes_than_allowed_are_refused_from_what_the_directory_says(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    path.write_bytes(archive_of(*((f"{number}.bin", os.urandom(1000)) for number in range(20))))
    with pytest.raises(DatasetInvalid, match="expands to more than"):
        Archive(path, Settings(expand_max_bytes=10_000))


def test_bytes_are_counted_over_all_copies_whatever_the_directory_says(tmp_path: Path) -> None:
    path = tmp_path / "counted.zip"
    path.write_bytes(archive_of(("a.bin", bytes(6000)), method=zipfile.ZIP_STORED))
    with Archive(path, Settings(expand_max_bytes=10_000)) as archive:
        archive.copy("a.bin", io.BytesIO())
        with pytest.raises(DatasetInvalid, match="expands to more than"):
            archive.copy("a.bin", io.BytesIO())


def test_an_entry_that_gives_more_than_it_declares_is_refused_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lying.zip"
    content = bytearray(archive_of(("zeros", bytes(4 << 20))))
    struct.pack_into("<L", content, content.rindex(b"PK\x01\x02") + 24, 1000)  # the directory's expanded size
    path.write_bytes(bytes(content))
    out = io.BytesIO()
    with Archive(path, Settings()) as archive, pytest.raises(DatasetInvalid, match="broken"):
        archive.copy("zeros", out)
    assert out.tell() <= 1000


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flipped.zip"
    content = bytearray(archive_of(("a.txt", b"hello world"), method=zipfile.ZIP_STORED))
    content[content.index(b"hello")] ^= 1
    path.write_bytes(bytes(content))
    with Archive(path, Settings()) as archive, pytest.raises(DatasetInvalid, match="broken"):
        archive.copy("a.txt", io.BytesIO())


def test_copying_ends_when_the_job_is_to_stop(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        raise Enough

    path = tmp_path / "plain.zip"
    path.write_bytes(PLAIN)
    with Archive(path, Settings(), check) as archive, pytest.raises(Enough):
        archive.copy("a.txt", io.BytesIO())


def test_an_archive_written_as_a_stream_with_zip64_fields_passes(tmp_path: Path) -> None:
    class Unseekable(io.RawIOBase):
        def __init__(self, target: io.BytesIO) -> None:
            self._target = target

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return self._target.write(data)

    content = io.BytesIO()
    with (
        zipfile.ZipFile(Unseekable(content), "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.txt", "w", force_zip64=True) as file,
    ):
        file.write(b"hello")
    path = tmp_path / "stream.zip"
    path.write_bytes(content.getvalue())
    out = io.BytesIO()
    with Archive(path, Settings()) as opened:
        opened.copy("a.txt", out)
    assert out.getvalue() == b"hello"
