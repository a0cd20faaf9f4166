"""Converting exports: what the rows, the pictures and the manifest say."""

import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gpu_runner.rows import Mask, open_rows
from gpu_runner.sam2 import manifest, masks
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, MaskOrder, TargetTask

Run = Callable[..., Any]


def convert(source: str, output: str = "datasets/out", **options: Any) -> ConvertSpec:
    return ConvertSpec(sam2_zip_path=source, output_dir=output, **options)


Run = Callable[..., Any]


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_every_format_gives_the_same_rows_with_masks_boxes_and_pictures(
    data_format: DataFormat, root: DataRoot, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    result = run(convert(make_export(two_frames), target_format=data_format))
    rows = open_rows(root, result.output_dir)
    assert (result.num_samples, len(rows), rows.format) == (2, 2, data_format)
    assert rows[0].bounding_boxes == ((2, 4, 8, 6), (15, 1, 10, 12))
    assert rows[0].labels == ("cat", "dog")
    assert (rows[1].video_id, rows[1].frame_index, rows[1].width, rows[1].height) == ("v", 6, 30, 20)
    expected = coco.encode(np.asfortranarray(build.rectangle(20, 30, 2, 4, 8, 6).astype(np.uint8)))
    assert rows[0].masks[0] == Mask((20, 30), expected["counts"].decode())
    assert rows[0].conversations[0].value.startswith("<image>\n")
    assert np.array_equal(np.asarray(rows.open_image(1)), np.asarray(Image.open(io.BytesIO(build.png(30, 20, seed=6)))))


@pytest.mark.parametrize("encoding", ["plain", "list", "compressed"])
def test_all_three_encodings_of_masks_are_read(
    encoding: str, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 3, 5, 7, 9)
    stated = build.thing(mask, mask_rle=build.encode(mask, encoding))
    run(convert(make_export([build.frame(0, stated)])))
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((3, 5, 7, 9),)


@pytest.mark.parametrize(("order", "flat"), [("column", "F"), ("row", "C")])
def test_the_order_of_runs_is_found_out_from_how_masks_hang_together(
    order: str, flat: str, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 3, 5, 7, 9)
    stated = build.thing(mask, mask_rle=build.encode(mask, "plain", flat))
    result = run(convert(make_export([build.frame(0, stated)])))
    assert result.mask_order == order
    assert "hang together" in result.mask_order_reason
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((3, 5, 7, 9),)


def test_on_a_square_grid_boxes_that_fit_the_rows_decide(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(24, 24, 3, 5, 7, 9)
    stated = build.thing(mask, mask_rle=build.encode(mask, "plain", "C"))
    result = run(convert(make_export([build.frame(0, stated)], width=24, height=24)))
    assert result.mask_order == "row"
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((3, 5, 7, 9),)


def test_on_a_square_grid_the_picture_decides_where_boxes_fit_both_ways(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(48, 48, 5, 10, 14, 28)
    content = io.BytesIO()
    Image.fromarray(np.where(mask[..., None], [200, 30, 30], [90, 90, 90]).astype(np.uint8)).save(content, "PNG")
    files = {"images/frame_000000.png": content.getvalue()}
    result = run(convert(make_export([build.frame(0, build.thing(mask))], width=48, height=48, files=files)))
    assert (result.mask_order, result.warnings) == ("column", ())
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((5, 10, 14, 28),)


def test_the_exporters_slip_on_its_low_resolution_grid_is_undone(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(256, 256, 20, 40, 50, 100)
    slipped = build.thing(mask.T, mask_rle=build.encode(mask, "plain", "C"))  # its box was read down the columns
    result = run(convert(make_export([build.frame(0, slipped)], width=512, height=384)))
    row = open_rows(root, "datasets/out")[0]
    assert result.mask_order == "row"
    assert row.bounding_boxes == ((40, 60, 100, 150),)
    assert any("grid of 256x256" in warning for warning in result.warnings)
    assert any("1 of 1 stated boxes" in warning for warning in result.warnings)


def test_a_declared_order_is_used_as_declared(root: DataRoot, run: Run, make_export: Run, build: Any) -> None:
    mask = build.rectangle(24, 24, 3, 5, 7, 9)
    source = make_export([build.frame(0, build.thing(mask))], width=24, height=24)
    result = run(convert(source, mask_order=MaskOrder.ROW))
    assert (result.mask_order, result.mask_order_reason) == ("row", "declared by mask_order")
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((5, 3, 9, 7),)


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_converting_twice_gives_the_same_bytes(
    data_format: DataFormat, root: DataRoot, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    source = make_export(two_frames)
    run(convert(source, "datasets/one", target_format=data_format))
    run(convert(source, "datasets/two", target_format=data_format))
    assert build.digest(root.datasets / "one") == build.digest(root.datasets / "two")


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_a_chosen_model_changes_the_recommendation_and_no_byte(
    data_format: DataFormat, root: DataRoot, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    source, said = make_export(two_frames), set()
    for name, model in (("none", None), ("llava", "demo-llava"), ("qwen", "Qwen/Qwen2.5-VL-3B-Instruct")):
        result = run(convert(source, f"datasets/{name}", target_format=data_format, task="detect", model_name=model))
        said.add(result.recommendation)
        assert build.digest(root.datasets / name) == build.digest(root.datasets / "none")
    assert len(said) == 3


def test_every_file_is_listed_with_its_hash_as_coreutils_check_it(
    root: DataRoot, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    run(convert(make_export(two_frames)))
    folder = root.datasets / "out"
    found = build.digest(folder)
    for name in ("manifest.json", "SHA256SUMS"):
        del found[name]
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{sha256}  {name}" for name, sha256 in sorted(found.items())]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_a_name_that_would_break_a_line_is_escaped_as_coreutils_do(tmp_path: Path) -> None:
    name = "a\\ \n b"
    (tmp_path / name).write_bytes(b"x")
    manifest.write_digests(tmp_path, {name: manifest.sha256_of(tmp_path / name)})
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)


def test_an_arrow_dataset_opens_with_the_datasets_library_and_carries_its_pictures(
    root: DataRoot, run: Run, make_export: Run, two_frames: Any
) -> None:
    run(convert(make_export(two_frames), target_format=DataFormat.HUGGINGFACE))
    moved = (root.datasets / "out").rename(root.folder / "elsewhere")
    opened = datasets.load_from_disk(str(moved))
    wanted = {"image", "conversations", "masks", "bounding_boxes", "labels", "frame_index", "video_id"}
    assert wanted <= set(opened.column_names)
    assert opened[0]["image"].size == (30, 20)
    assert opened[1]["labels"] == ["dog"]


def test_coco_masks_lie_on_the_images_own_grid(root: DataRoot, run: Run, make_export: Run, build: Any) -> None:
    mask = build.rectangle(20, 30, 3, 5, 7, 9)
    source = make_export([build.frame(0, build.thing(mask))], width=30, height=20, picture=(60, 40))
    run(convert(source, target_format=DataFormat.COCO))
    content = json.loads((root.datasets / "out" / "instances.json").read_text())
    (found,) = content["annotations"]
    assert found["segmentation"]["size"] == [40, 60]
    assert found["area"] == coco.area(found["segmentation"]) == 4 * 7 * 9
    assert found["bbox"] == coco.toBbox(found["segmentation"]).tolist() == [6, 10, 14, 18]
    assert content["categories"] == [{"id": 1, "name": "cat"}]


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        (TargetTask.CLASSIFY, "cat, dog"),
        (TargetTask.DETECT, '[{"label":"cat","box":[67,200,333,500]},{"label":"dog","box":[500,50,833,650]}]'),
    ],
)
def test_the_answer_is_that_of_the_task(
    task: TargetTask, answer: str, root: DataRoot, run: Run, make_export: Run, two_frames: Any
) -> None:
    run(convert(make_export(two_frames), task=task))
    assert open_rows(root, "datasets/out")[0].conversations[1].value == answer


def test_a_description_names_counts_and_boxes(root: DataRoot, run: Run, make_export: Run, two_frames: Any) -> None:
    run(convert(make_export(two_frames)))
    answer = open_rows(root, "datasets/out")[0].conversations[1].value
    assert "2 objects" in answer
    assert "cat at [2, 4, 8, 6]" in answer


def test_another_seed_gives_other_words_and_the_same_seed_the_same(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    source = make_export([build.frame(index, build.thing(mask)) for index in range(12)])
    words = []
    for seed in (1, 1, 2):
        run(convert(source, seed=seed))
        words.append([row.conversations for row in open_rows(root, "datasets/out")])
    assert words[0] == words[1] != words[2]


def test_frames_without_objects_are_left_out_and_counted_or_kept_when_asked(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    source = make_export([build.frame(0, build.thing(mask)), build.frame(1), build.frame(2, build.thing(mask & False))])
    result = run(convert(source))
    assert (result.num_samples, result.skipped_frames) == (1, 2)
    assert any("2 frames without objects" in warning for warning in result.warnings)
    kept = run(convert(source, keep_empty_frames=True))
    assert (kept.num_samples, kept.skipped_frames) == (3, 0)
    assert "no annotated objects" in open_rows(root, "datasets/out")[1].conversations[1].value


def test_keys_of_objects_that_we_do_not_know_are_kept(root: DataRoot, run: Run, make_export: Run, build: Any) -> None:
    stated = build.thing(build.rectangle(20, 30, 2, 4, 8, 6), track={"quality": [1, None]})
    run(convert(make_export([build.frame(0, stated)])))
    assert open_rows(root, "datasets/out")[0].attributes == ({"confidence": 1.0, "track": {"quality": [1, None]}},)


@pytest.mark.parametrize(
    "place", ["images/frame_{:06d}.png", "frames/frame_{:04d}.PNG", "data/{:05d}.jpg", "{:04d}.webp"]
)
def test_frames_are_found_in_every_place_and_under_every_name(
    place: str, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    files = {}
    for index in (0, 6):
        content = io.BytesIO()
        suffix = {"png": "PNG", "jpg": "JPEG", "ebp": "WEBP"}[place[-3:].lower()]
        Image.open(io.BytesIO(build.png(30, 20, index))).save(content, suffix)
        files[place.format(index)] = content.getvalue()
    without = [f"images/frame_{index:06d}.png" for index in (0, 6)]
    source = make_export(two_frames, files=files, without=[name for name in without if name not in files])
    assert run(convert(source)).num_samples == 2


def test_several_videos_of_one_archive_keep_apart(root: DataRoot, run: Run, make_export: Run, build: Any) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    files = {
        "one/annotations.json": build.annotations([build.frame(0, build.thing(mask, "cat"))], 30, 20, "clip.mp4"),
        "one/images/frame_000000.png": build.png(30, 20, 1),
        "two/annotations.json": build.annotations([build.frame(0, build.thing(mask, "dog"))], 30, 20, "clip.mp4"),
        "two/images/frame_000000.png": build.png(30, 20, 2),
        "__MACOSX/two/annotations.json": b"junk",
    }
    result = run(convert(make_export([], files=files, without=["annotations.json"])))
    rows = open_rows(root, result.output_dir)
    assert [(row.video_id, row.labels) for row in rows] == [("one", ("cat",)), ("two", ("dog",))]
    assert rows.open_image(0).tobytes() != rows.open_image(1).tobytes()


@pytest.mark.parametrize("name", ["con.mp4", "AUX", "nul.part.2.mov", "lpt1"])
def test_pictures_of_a_video_that_is_called_like_a_device_can_be_opened_by_the_service(
    name: str, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    frames = [build.frame(0, build.thing(build.rectangle(20, 30, 2, 4, 8, 6)))]
    run(convert(make_export(frames, files={"annotations.json": build.annotations(frames, 30, 20, name)})))
    with root.open(f"datasets/out/{open_rows(root, 'datasets/out')[0].image}") as picture:
        assert Image.open(picture).size == (30, 20)


def test_a_frame_stated_twice_gives_two_rows_with_ids_of_their_own(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    run(convert(make_export([build.frame(3, build.thing(mask)), build.frame(3, build.thing(mask, "dog"))])))
    assert [row.id for row in open_rows(root, "datasets/out")] == ["v-000003", "v-000003-2"]


@pytest.mark.parametrize("box", [None, [], [1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0], [-9, 1e308, 1e308, 1e308]])
def test_a_stated_box_that_is_no_box_does_no_harm(
    box: Any, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    stated = build.thing(build.rectangle(20, 30, 2, 4, 8, 6), bbox=box)
    run(convert(make_export([build.frame(0, stated)])))
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((2, 4, 8, 6),)


@pytest.mark.parametrize(
    ("name", "rows", "objects", "order"),
    [
        ("sav_000001_manual.zip", 121, 480, "column"),
        ("idoctor40_as_exported.zip", 40, 120, "row"),
        ("bedroom_classical.zip", 32, 32, "column"),
    ],
)
@pytest.mark.parametrize("data_format", [DataFormat.LLAVA, DataFormat.HUGGINGFACE])
def test_genuine_exports_are_converted(
    name: str,
    rows: int,
    objects: int,
    order: str,
    data_format: DataFormat,
    root: DataRoot,
    run: Run,
    sample_zip: Callable[[str], Path],
) -> None:
    (root.uploads / name).write_bytes(sample_zip(name).read_bytes())
    result = run(convert(f"uploads/{name}", target_format=data_format))
    assert (result.num_samples, result.num_objects, result.mask_order) == (rows, objects, order)
    for row in open_rows(root, "datasets/out"):
        for mask, box in zip(row.masks, row.bounding_boxes, strict=True):
            assert tuple(coco.toBbox({"size": list(mask.size), "counts": mask.counts})) == box


def test_a_genuine_export_that_counts_along_its_rows_is_turned_whatever_its_pictures_show(
    root: DataRoot, run: Run, sample_zip: Callable[[str], Path]
) -> None:
    """Its masks are genuine. Its pictures are not: who took the video out drew them anew, down the columns."""
    archive = sample_zip("idoctor40_as_exported.zip")
    (root.uploads / "export.zip").write_bytes(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        stated = json.loads(opened.read("annotations.json"))["annotations"]

    result = run(convert("uploads/export.zip"))

    assert result.mask_order == "row"
    assert "x/y and w/h swapped" in result.mask_order_reason
    assert any("masks would follow the edges in the pictures better" in said for said in result.warnings)
    rows = open_rows(root, "datasets/out")
    for index, (row, frame) in enumerate(zip(rows, stated, strict=True)):
        drawn = np.asarray(rows.open_image(index)).astype(int)
        background = np.median(drawn.reshape(-1, 3), axis=0)
        union = np.zeros((256, 256), dtype=bool)
        for mask, box, there in zip(row.masks, row.bounding_boxes, frame["objects"], strict=True):
            grid = masks.paint(masks.read_compressed(str(mask.counts))).reshape(256, 256).T
            runs = [int(count) for count in there["mask_rle"].split()]
            along_rows = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(256, 256)
            assert (grid == along_rows).all()
            ys, xs = np.nonzero(grid)
            assert box == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
            union |= grid
        is_drawn = np.abs(drawn - background).max(axis=-1) > 40
        assert (is_drawn == union.T).mean() > 0.99
        assert (is_drawn == union).mean() < 0.95
