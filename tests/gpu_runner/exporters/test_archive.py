"""The archive of an export: the same bytes for the same files, whole or not at all."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from gpu_runner.exporters import archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    (folder / "b.json").write_text("{}")
    (folder / "a.bin").write_bytes(bytes(10_000_000))
    (folder / "deeper" / "c.txt").write_text("c")
    return folder


def test_equal_folders_give_equal_archives(folder: Path, tmp_path: Path) -> None:
    first = archive.pack(folder, tmp_path / "x.zip", lambda: None)
    before = (tmp_path / "x.zip").read_bytes()
    (folder / "b.json").touch()
    assert archive.pack(folder, tmp_path / "x.zip", lambda: None) == first == hashlib.sha256(before).hexdigest()


def test_names_stand_below_one_folder_in_order_and_unpack_as_they_were(folder: Path, tmp_path: Path) -> None:
    archive.pack(folder, tmp_path / "my-model.zip", lambda: None)
    with zipfile.ZipFile(tmp_path / "my-model.zip") as packed:
        assert packed.namelist() == ["my-model/a.bin", "my-model/b.json", "my-model/deeper/c.txt"]
        assert packed.testzip() is None
        packed.extractall(tmp_path / "out")
    for path in folder.rglob("*.*"):
        assert (tmp_path / "out" / "my-model" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_a_stop_is_heard_within_a_large_file(folder: Path, tmp_path: Path) -> None:
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        archive.pack(folder, tmp_path / "x.zip", beat)
    assert (tmp_path / "x.zip").stat().st_size < (folder / "a.bin").stat().st_size


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("first run", "first-run-huggingface.zip"),
        ("../../etc/passwd", "etc-passwd-huggingface.zip"),
        ("ünï ✓", "n-huggingface.zip"),
        ("✓", "export-huggingface.zip"),
        ('a"; filename="b\r\nx: y', "a-filename-b-x-y-huggingface.zip"),
        ("x" * 200, "x" * 100 + "-huggingface.zip"),
    ],
)
def test_an_archive_is_named_in_characters_everything_takes(name: str, file: str) -> None:
    assert archive.file_name(name, "huggingface") == file
