"""Fingerprints: alike for what looks alike, kept by validation, and found again without opening a picture."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gpu_runner.rows import open_rows
from gpu_runner.sam2 import fingerprints
from gpu_runner.sam2.fingerprints import RECORD
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, ValidateSpec


def scene(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((200, 150), Image.Resampling.BICUBIC)


def record(picture: Image.Image) -> np.ndarray:
    return np.frombuffer(fingerprints.of_picture(picture), dtype=RECORD)[0]


def apart(one: np.ndarray, other: np.ndarray, hash_name: str) -> int:
    """Bits in which two hashes differ."""
    return int(np.bitwise_count(one[hash_name] ^ other[hash_name]).sum())


def recompressed(picture: Image.Image) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=60)
    return Image.open(content).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda picture: picture.resize((320, 240)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.9),
    ],
    ids=["recompressed", "resized", "darker"],
)
def test_what_looks_the_same_has_nearly_the_same_fingerprint(change: Callable[[Image.Image], Image.Image]) -> None:
    for seed in range(10):
        picture = scene(seed)
        one, other = record(picture), record(change(picture))
        assert apart(one, other, "coarse") <= 3
        assert apart(one, other, "fine") <= 12


def test_different_pictures_are_far_apart_and_flat_ones_differ_by_their_colour() -> None:
    assert all(apart(record(scene(0)), record(scene(seed)), "fine") > 60 for seed in range(1, 10))
    red, blue = (record(Image.new("RGB", (40, 30), colour)) for colour in ("red", "blue"))
    assert apart(red, blue, "fine") == 0
    assert red["colour"].tolist() == [255, 0, 0]
    assert blue["colour"].tolist() == [0, 0, 255]


@pytest.fixture
def dataset(run: Callable[..., Any], make_export: Callable[..., str], build: Any, data_format: DataFormat) -> str:
    frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k % 9, 4, 8, 6))) for k in range(40)]
    run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d", target_format=data_format))
    return "datasets/d"


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no picture can be opened."""

    def refuse(*_: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr("gpu_runner.images.read_rgb", refuse)


@pytest.mark.parametrize("data_format", [DataFormat.LLAVA, DataFormat.HUGGINGFACE])
def test_validation_keeps_them_and_a_part_of_the_dataset_finds_its_own(
    data_format: DataFormat, dataset: str, run: Callable[..., Any], root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fingerprints.of(open_rows(root, dataset), root, 2, lambda: None)
    assert len(made) == 40
    assert made["is_there"].all()
    for kept in (root.folder / "fingerprints").iterdir():
        kept.unlink()

    run(ValidateSpec(data_path=dataset, format_type=data_format))
    divided = run(SplitSpec(data_path=dataset, output_dir="datasets/s"))
    unreadable(monkeypatch)

    assert fingerprints.of(open_rows(root, dataset), root, 2, lambda: None).tobytes() == made.tobytes()
    ids = list(open_rows(root, dataset).ids())
    part = open_rows(root, divided.val_path)
    expected = made[[ids.index(row_id) for row_id in part.ids()]]
    assert fingerprints.of(part, root, 2, lambda: None).tobytes() == expected.tobytes()


@pytest.mark.parametrize("data_format", [DataFormat.LLAVA])
def test_rows_without_a_usable_picture_have_none_and_changed_rows_are_looked_at_anew(
    dataset: str, root: DataRoot
) -> None:
    rows = open_rows(root, dataset)
    fingerprints.of(rows, root, 1, lambda: None)
    file: Path = rows.files[0]
    file.write_text(file.read_text().replace("frame_000003.png", "gone.png"))

    found = fingerprints.of(open_rows(root, dataset), root, 1, lambda: None)

    assert found["is_there"].tolist() == [1, 1, 1, 0, *[1] * 36]


@pytest.mark.parametrize("data_format", [DataFormat.LLAVA])
def test_a_picture_that_was_replaced_is_looked_at_anew_and_what_is_old_is_forgotten(
    dataset: str, root: DataRoot
) -> None:
    rows = open_rows(root, dataset)
    before = fingerprints.of(rows, root, 1, lambda: None)
    (kept,) = (root.folder / "fingerprints").iterdir()
    os.utime(kept, (0, 0))
    scene(7).save(rows.dataset / str(rows[3].image))

    after = fingerprints.of(open_rows(root, dataset), root, 1, lambda: None)

    assert np.flatnonzero(before != after).tolist() == [3]
    assert len(list((root.folder / "fingerprints").iterdir())) == 1
    assert not kept.exists()


@pytest.mark.parametrize("data_format", [DataFormat.LLAVA])
def test_a_wish_to_stop_is_heard_and_nothing_is_kept(dataset: str, root: DataRoot) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fingerprints.of(open_rows(root, dataset), root, 1, stop)
    assert not (root.folder / "fingerprints").exists()
