"""Converting exports: what the rows say, what is refused, and that nothing is lost or left behind."""

import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import msgspec
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gpu_runner.rows import Mask, open_rows
from gpu_runner.sam2 import manifest, masks
from gpu_runner.work import Stop, Stopped
from jobs.errors import DatasetInvalid, FailureReason, OutputTaken
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ConvertSpec, DataFormat, MaskOrder, SplitSpec, TargetTask

Run = Callable[..., Any]


def convert(source: str, output: str = "datasets/out", **options: Any) -> ConvertSpec:
    return ConvertSpec(sam2_zip_path=source, output_dir=output, **options)


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def two_frames(build: Any) -> list[dict[str, Any]]:
    left = build.rectangle(20, 30, 2, 4, 8, 6)
    right = build.rectangle(20, 30, 15, 1, 10, 12)
    return [
        build.frame(0, build.thing(left, "cat"), build.thing(right, "dog", object_id=2)),
        build.frame(6, build.thing(right, "dog", object_id=2)),
    ]


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
    data_format: DataFormat, root: DataRoot, run: Run, make_export: Run, two_frames: Any
) -> None:
    source = make_export(two_frames)
    run(convert(source, "datasets/one", target_format=data_format))
    run(convert(source, "datasets/two", target_format=data_format))
    assert digest(root.datasets / "one") == digest(root.datasets / "two")


def many_frames(build: Any, count: int = 180) -> list[Any]:
    """Some without objects, and one that is stated three times, by two processes."""
    masks = [build.rectangle(20, 30, 2 + number % 9, 4, 8, 6) for number in range(count)]
    stated = [build.frame(number, *[build.thing(masks[number])] * (number % 7 > 0)) for number in range(count)]
    return [*stated, *(build.frame(3, build.thing(masks[0], "dog")) for _ in range(9))]


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_several_processes_write_the_bytes_that_one_writes(
    data_format: DataFormat, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    source = make_export(many_frames(build))
    spec = convert(source, "datasets/alone", target_format=data_format)
    alone = run(spec)
    together = run(msgspec.structs.replace(spec, output_dir="datasets/together"), cores=3)
    assert digest(root.datasets / "alone") == digest(root.datasets / "together")
    assert alone.message.replace("alone", "together") == together.message
    assert (alone.skipped_frames, alone.warnings) == (together.skipped_frames, together.warnings)
    assert open_rows(root, "datasets/together")[-1].id == "v-000003-10"


@pytest.mark.parametrize("cores", [1, 3])
def test_of_several_broken_frames_the_first_is_named_whoever_finds_it(
    cores: int, run: Run, make_export: Run, build: Any
) -> None:
    frames = many_frames(build)
    for number in (100, 50, 150):
        frames[number]["objects"][0]["mask_rle"] = "1 2 3"
    with pytest.raises(DatasetInvalid, match="v-000050"):
        run(convert(make_export(frames)), cores=cores)


@pytest.mark.parametrize("cores", [1, 3])
def test_pictures_are_counted_over_all_processes(
    cores: int, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    """One picture that many frames name may come out of the archive no oftener than its limit allows."""
    source = make_export([build.frame(0, build.thing(build.rectangle(20, 30, 2, 4, 8, 6)))] * 200)
    with zipfile.ZipFile(root.uploads / "export.zip") as archive:
        size = archive.getinfo("images/frame_000000.png").file_size
    assert run(convert(source), cores=cores, settings=Settings(expand_max_bytes=250 * size)).num_samples == 200
    with pytest.raises(DatasetInvalid, match="expands to more than"):
        run(convert(source), cores=cores, settings=Settings(expand_max_bytes=150 * size))


def test_every_file_is_listed_with_its_hash_as_coreutils_check_it(
    root: DataRoot, run: Run, make_export: Run, two_frames: Any
) -> None:
    run(convert(make_export(two_frames)))
    folder = root.datasets / "out"
    found = digest(folder)
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


def test_a_frame_stated_twice_gives_two_rows_with_ids_of_their_own(
    root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    run(convert(make_export([build.frame(3, build.thing(mask)), build.frame(3, build.thing(mask, "dog"))])))
    assert [row.id for row in open_rows(root, "datasets/out")] == ["v-000003", "v-000003-2"]


def test_missing_pictures_are_named_together(root: DataRoot, run: Run, make_export: Run, two_frames: Any) -> None:
    source = make_export(two_frames, without=["images/frame_000000.png", "images/frame_000006.png"])
    with pytest.raises(DatasetInvalid, match=r"no picture for 2 annotated frames.*v-000000, v-000006"):
        run(convert(source))
    assert list(root.datasets.iterdir()) == [root.datasets / ".staging"]
    assert list((root.datasets / ".staging").iterdir()) == []


@pytest.mark.parametrize("box", [None, [], [1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0], [-9, 1e308, 1e308, 1e308]])
def test_a_stated_box_that_is_no_box_does_no_harm(
    box: Any, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    stated = build.thing(build.rectangle(20, 30, 2, 4, 8, 6), bbox=box)
    run(convert(make_export([build.frame(0, stated)])))
    assert open_rows(root, "datasets/out")[0].bounding_boxes == ((2, 4, 8, 6),)


def broken(field: str, value: Any) -> Callable[[Any], list[dict[str, Any]]]:
    return lambda build: [build.frame(0, {**build.thing(build.rectangle(20, 30, 2, 4, 8, 6)), field: value})]


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (broken("mask_rle", "1 2 4"), "runs of 7 pixels"),
        (broken("mask_rle", "-5 605"), r"annotations.json#/annotations/0/objects/0/mask_rle is no list"),
        (broken("mask_rle", "1000000000 1"), "million pixels"),
        (broken("mask_rle", {"counts": [0, 10**9], "size": [10**4, 10**5]}), r"objects/0/mask_rle/size"),
        (broken("mask_rle", {"counts": [0], "size": [0, 30]}), r"objects/0/mask_rle/size"),
        (broken("mask_rle", {"counts": "PPPP", "size": [20, 30]}), "mask_rle"),
        (broken("mask_rle", 7), "/annotations/0/objects/0/mask_rle"),
        (broken("label", "a <image> b"), "reserved word"),
        (broken("label", "x" * 5000), "/annotations/0/objects/0/label"),
        (broken("bbox", [0, 0, "x", 1]), "/annotations/0/objects/0/bbox/2"),
        (lambda build: [{"frame_index": -1, "objects": []}], "/annotations/0/frame_index"),
        (lambda build: [{"frame_index": "0"}], "/annotations/0/frame_index"),
        (lambda build: [build.frame(0)], "carries an object"),
        (lambda build: [], "carries an object"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused_with_their_place(
    frames: Any, says: str, root: DataRoot, run: Run, make_export: Run, build: Any
) -> None:
    with pytest.raises(DatasetInvalid, match=says):
        run(convert(make_export(frames(build))))
    assert not (root.datasets / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read as JSON"),
        (b"[" * 100_000, "nests more than 64 levels deep"),
        (b'{"a": NaN}', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (
            b'{"images": [], "annotations": 3, "categories": []}',
            r"annotations.json#/annotations is missing, or no list",
        ),
        (b'{"videos": [], "frames": 3}', r"annotations.json \(videos, frames\)"),
    ],
)
def test_a_file_of_no_known_format_is_named_for_what_it_is(
    content: bytes, says: str, run: Run, make_export: Run
) -> None:
    with pytest.raises(DatasetInvalid, match=says):
        run(convert(make_export([], files={"annotations.json": content})))


def test_an_archive_without_annotations_says_what_it_holds(run: Run, make_export: Run) -> None:
    source = make_export([], files={"labels.json": b"{}"}, without=["annotations.json"])
    with pytest.raises(DatasetInvalid, match=r"no annotations of a known format.* labels.json \(nothing\)"):
        run(convert(source))


def bomb() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels."""
    content = bytearray(io.BytesIO(_tiny_png()).getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


def _tiny_png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


def _as(kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (30, 20)).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg/>",
        bomb(),
        _as("GIF"),
        _as("TIFF"),
        _as("BMP"),
        _as("WEBP", save_all=True, append_images=[Image.new("RGB", (30, 20), "red")]),
    ],
    ids=["empty", "svg", "huge", "gif", "tiff", "bmp", "animation"],
)
def test_a_picture_that_is_none_of_ours_is_refused_with_its_row(
    content: bytes, run: Run, make_export: Run, two_frames: Any
) -> None:
    with pytest.raises(DatasetInvalid, match="v-000006 cannot be used"):
        run(convert(make_export(two_frames, files={"images/frame_000006.png": content})))


def test_our_folder_is_replaced_whole_and_its_splits_go_with_it(
    root: DataRoot, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    run(convert(make_export(two_frames)))
    run(SplitSpec(data_path="datasets/out", output_dir="datasets/out/splits"))
    single = make_export([build.frame(9, build.thing(build.rectangle(20, 30, 1, 1, 5, 5)))], name="other.zip")
    assert run(convert(single)).num_samples == 1
    images = [path.name for path in (root.datasets / "out").rglob("*.png")]
    assert images == ["frame_000009.png"]
    assert not (root.datasets / "out" / "splits").exists()
    assert list(root.trash.iterdir()) == []


@pytest.mark.parametrize("stranger", ["notes.txt", "images/../notes/a.txt"])
def test_a_folder_with_something_of_somebody_else_is_left_alone(
    stranger: str, root: DataRoot, run: Run, make_export: Run, two_frames: Any
) -> None:
    source = make_export(two_frames)
    run(convert(source))
    foreign = (root.datasets / "out" / stranger).resolve()
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    before = digest(root.datasets / "out")
    with pytest.raises(OutputTaken, match="no convert job wrote there") as raised:
        run(convert(source))
    assert raised.value.reason is FailureReason.CONFLICT
    assert digest(root.datasets / "out") == before


@pytest.mark.parametrize("output", ["uploads", "uploads/x", "datasets", "jobs/job/attempt-1", "models/x"])
def test_only_a_place_below_datasets_is_written_to(output: str, run: Run, make_export: Run, two_frames: Any) -> None:
    with pytest.raises(OutputTaken):
        run(convert(make_export(two_frames), output))


def test_a_hostile_archive_leaves_nothing_behind(root: DataRoot, run: Run) -> None:
    with zipfile.ZipFile(root.uploads / "bad.zip", "w") as archive:
        archive.writestr("../../escaped.txt", b"1")
        archive.writestr("annotations.json", b"{}")
    with pytest.raises(DatasetInvalid, match="refused"):
        run(convert("uploads/bad.zip"))
    assert not list(root.folder.parent.rglob("escaped.txt"))
    assert not (root.datasets / "out").exists()


def test_limits_of_the_settings_hold(run: Run, make_export: Run, two_frames: Any) -> None:
    with pytest.raises(DatasetInvalid, match="expands to more than"):
        run(convert(make_export(two_frames)), settings=Settings(expand_max_bytes=100))


def test_a_cancelled_conversion_changes_nothing(root: DataRoot, run: Run, make_export: Run, two_frames: Any) -> None:
    stop = Stop()
    stop.wanted = "cancel"
    with pytest.raises(Stopped):
        run(convert(make_export(two_frames)), stop=stop)
    assert not (root.datasets / "out").exists()
    assert list((root.datasets / ".staging").iterdir()) == []


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
