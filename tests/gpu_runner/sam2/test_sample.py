"""The sample export: reproducible, exact, balanced so that guessing does not pay."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_runner.rows import open_rows
from gpu_runner.sam2 import masks, sample
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, SplitSpec, SplitStrategy, TargetTask, ValidateSpec


def test_the_program_writes_the_same_bytes_each_time_and_others_for_another_seed(tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        target = tmp_path / f"{name}.zip"
        arguments = [str(target), "--videos", "2", "--frames", "6", "--seed", seed]
        subprocess.run([sys.executable, "-m", "gpu_runner.sam2.sample", *arguments], check=True)
        written.append(target.read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("sample") / "sample.zip"
    sample.write_sample(written)
    return written


@pytest.fixture
def dataset(archive: Path, root: DataRoot, run: Callable[..., Any]) -> Any:
    (root.uploads / "sample.zip").write_bytes(archive.read_bytes())
    return run(ConvertSpec(sam2_zip_path="uploads/sample.zip", output_dir="datasets/sample", task=TargetTask.CLASSIFY))


def test_it_converts_and_validates_without_a_word(dataset: Any, run: Callable[..., Any]) -> None:
    assert (dataset.num_samples, dataset.num_objects, dataset.mask_order, dataset.warnings) == (320, 320, "column", ())
    result = run(ValidateSpec(data_path="datasets/sample", level="strict"))
    assert (result.result, result.errors, result.warnings) == ("passed", (), ())


def test_the_mask_covers_exactly_the_coloured_object_and_the_answer_is_its_colour(dataset: Any, root: DataRoot) -> None:
    rows = open_rows(root, "datasets/sample")
    for index in range(0, len(rows), 9):
        row = rows[index]
        (colour,) = row.labels
        assert row.conversations[1].value == colour
        height, width = row.masks[0].size
        mask = masks.paint(masks.read_compressed(str(row.masks[0].counts))).reshape(width, height).T
        pixels = np.asarray(rows.open_image(index), dtype=float)
        assert np.abs(pixels[mask].mean(axis=0) - sample.COLOURS[colour]).max() < 50
        assert pixels[mask].std(axis=0).max() < 6


def test_no_fixed_answer_is_right_more_often_than_one_time_in_three_on_videos_held_out(
    dataset: Any, root: DataRoot, run: Callable[..., Any]
) -> None:
    parts = run(
        SplitSpec(
            data_path="datasets/sample",
            output_dir="datasets/parts",
            strategy=SplitStrategy.TEMPORAL,
            train_ratio=0.7,
            val_ratio=0.2,
            test_ratio=0.1,
        )
    )
    homes = []
    for name in (parts.train_path, parts.val_path, parts.test_path):
        rows = list(open_rows(root, name))
        answers = Counter(row.conversations[1].value for row in rows)
        assert max(answers.values()) / len(rows) <= 0.35
        assert set(answers) == set(sample.COLOURS)
        homes.append({row.video_id for row in rows})
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]
