"""The three formats: what other tools and the service find in them, and that nothing in them is left to chance."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from gpu_runner.rows import LocatedRow, Mask, Row, open_rows
from gpu_runner.sam2 import masks
from gpu_runner.sam2.writers.coco import _resized
from gpu_runner.training import selection
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, SplitSpec

Run = Callable[..., Any]
FORMATS = [
    (DataFormat.LLAVA, True),
    (DataFormat.COCO, True),
    (DataFormat.HUGGINGFACE, True),
    (DataFormat.HUGGINGFACE, False),
]


@pytest.fixture
def make(run: Run, make_export: Run, build: Any) -> Run:
    """Convert ten frames of two objects into datasets/out."""

    def convert(data_format: DataFormat, embed_images: bool = True, **export: Any) -> Any:
        left, right = build.rectangle(20, 30, 2, 4, 8, 6), build.rectangle(20, 30, 15, 1, 10, 12)
        frames = [
            build.frame(index, build.thing(left, "cat"), build.thing(right, "dog", object_id=2)) for index in range(10)
        ]
        options = {"target_format": data_format, "embed_images": embed_images}
        return run(ConvertSpec(sam2_zip_path=make_export(frames, **export), output_dir="datasets/out", **options))

    return convert


def lines(root: DataRoot) -> list[LocatedRow]:
    content = (root.datasets / "out" / "rows.jsonl").read_bytes()
    return [msgspec.json.decode(line, type=LocatedRow) for line in content.splitlines()]


def test_pictures_can_stay_files_that_the_arrow_table_names(make: Run, root: DataRoot, run: Run, build: Any) -> None:
    make(DataFormat.HUGGINGFACE, embed_images=False)
    run(SplitSpec(data_path="datasets/out", output_dir="datasets/parts", strategy="random"))
    opened = datasets.load_from_disk(str(root.datasets / "out"))
    assert opened.features["image"] == datasets.Value("string")
    assert opened[3]["image"] == "images/v/frame_000003.png"
    picture = np.asarray(Image.open(io.BytesIO(build.png(30, 20, seed=3))))
    whole, part = open_rows(root, "datasets/out"), open_rows(root, "datasets/parts/train.jsonl")
    for rows in (whole, part):
        at = rows.find("v-000003")
        assert at is not None
        assert np.array_equal(np.asarray(rows.open_image(at)), picture)
        assert rows.image_content(at, "images/v/frame_000003.png") == build.png(30, 20, seed=3)
        assert selection.image_name(root, rows, rows[at]) == "datasets/out/images/v/frame_000003.png"


def test_embedded_pictures_are_in_the_table_alone(make: Run, root: DataRoot, build: Any) -> None:
    make(DataFormat.HUGGINGFACE)
    assert not (root.datasets / "out" / "images").exists()
    rows = open_rows(root, "datasets/out")
    assert selection.image_name(root, rows, rows[3]) is None
    assert rows.image_content(3, "images/v/frame_000003.png") == build.png(30, 20, seed=3)


@pytest.mark.parametrize("embed_images", [True, False])
def test_an_arrow_table_has_its_rows_beside_it_as_lines(embed_images: bool, make: Run, root: DataRoot) -> None:
    make(DataFormat.HUGGINGFACE, embed_images)
    said = [Row(**{name: getattr(line, name) for name in Row.__struct_fields__}) for line in lines(root)]
    assert said == list(open_rows(root, "datasets/out"))


def test_the_lines_say_where_in_the_table_each_picture_lies(make: Run, root: DataRoot, build: Any) -> None:
    make(DataFormat.HUGGINGFACE)
    for line in lines(root):
        assert line.image_file is not None
        with (root.datasets / "out" / line.image_file).open("rb") as file:
            file.seek(line.image_offset)
            assert file.read(line.image_bytes) == build.png(30, 20, seed=line.frame_index)


def test_places_of_pictures_hold_over_several_batches(root: DataRoot, run: Run, make_export: Run, build: Any) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    source = make_export([build.frame(index, build.thing(mask)) for index in range(150)])
    run(ConvertSpec(sam2_zip_path=source, output_dir="datasets/out", target_format=DataFormat.HUGGINGFACE))
    data = (root.datasets / "out" / "data-00000-of-00001.arrow").read_bytes()
    found = [data[line.image_offset : line.image_offset + line.image_bytes] for line in lines(root)]
    assert found == [build.png(30, 20, seed=index) for index in range(150)]
    assert len(datasets.load_from_disk(str(root.datasets / "out"))) == 150


def test_pictures_that_stay_files_have_no_place_in_the_table(make: Run, root: DataRoot) -> None:
    make(DataFormat.HUGGINGFACE, embed_images=False)
    assert {(line.image_file, line.image_bytes) for line in lines(root)} == {(None, 0)}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
def test_instances_open_with_the_coco_tools(make: Run, root: DataRoot) -> None:
    make(DataFormat.COCO, picture=(60, 40))
    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO(str(root.datasets / "out" / "instances.json"))
    assert [kind["name"] for kind in opened.loadCats(opened.getCatIds())] == ["cat", "dog"]
    (image_id, *others) = opened.getImgIds()
    assert len(others) == 9
    assert (root.datasets / "out" / opened.loadImgs(image_id)[0]["file_name"]).is_file()
    cat, dog = opened.loadAnns(opened.getAnnIds(image_id))
    painted = opened.annToMask(cat)
    assert painted.shape == (40, 60)
    assert painted[8:20, 4:20].all()
    assert painted.sum() == cat["area"] == 8 * 6 * 4
    assert dog["bbox"] == [30, 2, 20, 24]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), *[st.integers(1, 40)] * 4, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_a_mask_on_another_grid_is_that_of_the_nearest_pixels(
    seed: int, h: int, w: int, height: int, width: int, share: float
) -> None:
    pixels = np.random.default_rng(seed).random((h, w)) < share
    down, across = np.arange(height) * h // height, np.arange(width) * w // width
    expected = masks.count_runs(pixels[np.ix_(down, across)].ravel(order="F"))
    resized = _resized(masks.count_runs(pixels.ravel(order="F")), (h, w), (height, width))
    assert np.array_equal(resized, expected)


PROGRAM = """
import sys
from gpu_runner.journal import Journal
from gpu_runner.recipes import convert
from gpu_runner.work import Stop, Work
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ConvertSpec, DataFormat

root = DataRoot(sys.argv[1])
for number, (data_format, embeds) in enumerate(FORMATS):
    folder = root.attempt(sys.argv[2], number + 1)
    folder.folder.mkdir(parents=True)
    spec = ConvertSpec(
        sam2_zip_path="uploads/export.zip",
        output_dir=f"datasets/{sys.argv[2]}/{number}",
        target_format=DataFormat(data_format),
        embed_images=embeds,
    )
    convert.run(
        Work(sys.argv[2], 1, spec, "cpu", 1, root, folder, Journal(root, folder, "j"), Stop(), Settings())
    )
"""


def test_two_processes_write_the_same_bytes_whatever_their_hash_seed(
    root: DataRoot, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    labels = ["cat", "dog", "bird", "ant", "bee"]
    make_export([build.frame(index, *(build.thing(mask, label, b=1, a=2) for label in labels)) for index in range(5)])
    program = f"FORMATS = {[(str(one), embeds) for one, embeds in FORMATS]}{PROGRAM}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root.folder), name],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for name, seed in (("one", "1"), ("two", "2"))
    ]
    assert [process.wait() for process in running] == [0, 0]
    contents = [
        {
            str(path.relative_to(root.datasets / name)): path.read_bytes()
            for path in (root.datasets / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    ]
    assert len(contents[0]) == (5 + 3) + (5 + 4) + 6 + (5 + 6)
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("data_format", "embeds"), FORMATS)
def test_the_manifest_says_what_went_in_how_and_what_came_out(
    data_format: DataFormat, embeds: bool, make: Run, root: DataRoot, build: Any
) -> None:
    result = make(data_format, embeds)
    folder = root.datasets / "out"
    said = json.loads((folder / "manifest.json").read_text())
    (source,) = said["sources"]
    told = {name: source[name] for name in ("sha256", "upload", "format", "mask_order", "mask_order_reason")}
    assert told == {
        "sha256": result.source_sha256,
        "upload": "export.zip",
        "format": result.source_format,
        "mask_order": "column",
        "mask_order_reason": result.mask_order_reason,
    }
    assert result.source_format
    assert result.mask_order_reason
    assert said["options"] == {
        "target_format": str(data_format),
        "task": "describe",
        "mask_order": "auto",
        "keep_empty_frames": False,
        "embed_images": embeds,
        "seed": 42,
    }
    assert (said["rows"], said["objects"], said["labels"]) == (10, 20, {"cat": 10, "dog": 10})
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(said["entries"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == there - {"manifest.json", "SHA256SUMS"}
    for name, digest in listed.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_masks_of_the_images_own_size_are_passed_on_as_they_are(make: Run, root: DataRoot) -> None:
    make(DataFormat.COCO)
    content = json.loads((root.datasets / "out" / "instances.json").read_text())
    first = content["annotations"][0]["segmentation"]
    assert Mask(tuple(first["size"]), first["counts"]) == open_rows(root, "datasets/out")[0].masks[0]
