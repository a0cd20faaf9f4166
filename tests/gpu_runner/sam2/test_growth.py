"""Adding an export to a dataset: what is there stays, what is new comes in, and the same again changes nothing."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from gpu_runner.rows import open_rows
from gpu_runner.sam2 import manifest, masks
from gpu_runner.work import Stop, Stopped
from jobs.errors import DatasetInvalid, OutputTaken
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, PrepareSpec, SplitSpec, TargetTask, ValidateSpec

Run = Callable[..., Any]
FORMATS = [
    (DataFormat.LLAVA, True),
    (DataFormat.COCO, True),
    (DataFormat.HUGGINGFACE, True),
    (DataFormat.HUGGINGFACE, False),
]


@pytest.fixture
def convert(run: Run) -> Run:
    """Convert an export into datasets/birds with a seed of its own; `add` adds it to what is there."""

    def convert_into(source: str, *, add: bool = False, output: str = "datasets/birds", **options: Any) -> Any:
        grow = {"add_to": "datasets/birds"} if add else {"seed": 7}
        stop = options.pop("stop", None)
        return run(ConvertSpec(sam2_zip_path=source, output_dir=output, **grow, **options), stop=stop)

    return convert_into


@pytest.fixture
def things(build: Any) -> Any:
    """Three objects by name, of which `cat` and `other_cat` have the same id."""

    class Things:
        cat = build.thing(build.rectangle(20, 30, 2, 4, 8, 6), "cat", object_id=1)
        other_cat = build.thing(build.rectangle(20, 30, 3, 5, 6, 6), "lynx", object_id=1, confidence=0.5)
        dog = build.thing(build.rectangle(20, 30, 15, 1, 10, 12), "dog", object_id=2)

    return Things


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("data_format", "embeds"), FORMATS)
def test_an_export_is_merged_in_by_video_frame_and_object(
    data_format: DataFormat, embeds: bool, convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    options = {"target_format": data_format, "embed_images": embeds, "task": TargetTask.CLASSIFY}
    first = [build.frame(0, things.cat, things.dog), build.frame(1, things.cat), build.frame(2, things.dog)]
    convert(make_export(first), **options)
    kept = open_rows(root, "datasets/birds")[2]
    second = [build.frame(4, things.dog), build.frame(0, things.other_cat), build.frame(1, things.dog)]

    result = convert(make_export(second, name="second.zip"), add=True, **options)

    rows = open_rows(root, "datasets/birds")
    assert [row.id for row in rows] == ["v-000000", "v-000001", "v-000002", "v-000004"]
    assert [row.labels for row in rows] == [("lynx", "dog"), ("cat", "dog"), ("dog",), ("dog",)]
    assert rows[0].bounding_boxes == ((3, 5, 6, 6), (15, 1, 10, 12))
    assert [each["confidence"] for each in rows[0].attributes] == [0.5, 1.0]
    assert [row.conversations[1].value for row in rows] == ["dog, lynx", "cat, dog", "dog", "dog"]
    assert rows[2] == kept
    for index, frame in enumerate((0, 1, 2, 4)):
        assert rows.image_content(index, rows[index].image or "") == build.png(30, 20, seed=frame)
    assert (
        "1 frames and 2 objects are new; 1 objects replaced in 2 frames that were there; 1 frames and 3 "
        in result.message
    )
    assert (result.num_samples, result.num_objects) == (4, 6)
    assert result.labels == {"lynx": 1, "dog": 4, "cat": 1}


@pytest.mark.parametrize(("data_format", "embeds"), FORMATS)
def test_the_same_export_again_changes_nothing_and_is_said_to_be_there(
    data_format: DataFormat, embeds: bool, convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    frames = [
        build.frame(0, things.cat, things.dog, things.dog),
        build.frame(1, things.cat),
        build.frame(1, things.dog),
    ]
    source = make_export([*frames, build.frame(5), build.frame(6, {**things.cat, "object_id": ""})])
    options = {"target_format": data_format, "embed_images": embeds}
    convert(source, **options)
    folder = root.datasets / "birds"
    before = files_of(folder)

    result = convert(source, add=True, **options)

    assert files_of(folder) == before
    assert any("has this very export already" in warning for warning in result.warnings)
    assert "0 frames and 0 objects are new; 6 objects replaced in 4 frames" in result.message
    assert not [warning for warning in result.warnings if "another picture" in warning]


def test_each_export_is_a_source_once_and_the_one_that_was_merged_last_comes_last(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    first = make_export([build.frame(0, things.cat)])
    second = make_export([build.frame(1, things.dog)], name="second.zip")
    made = [convert(first), convert(second, add=True), convert(second, add=True), convert(first, add=True)]
    one, other = made[0].source_sha256, made[1].source_sha256
    sources = json.loads((root.datasets / "birds" / "manifest.json").read_text())["sources"]
    assert [source["sha256"] for source in sources] == [other, one]
    assert ["already" in " ".join(result.warnings) for result in made] == [False, False, True, True]
    assert len(open_rows(root, "datasets/birds")) == 2


def test_frames_left_out_are_those_that_no_export_has_annotated(
    convert: Run, run: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    bare = [build.frame(0, things.cat), *(build.frame(index) for index in (1, 2, 3))]
    rest = [build.frame(0), build.frame(1, things.cat), build.frame(2, things.dog), build.frame(4)]
    first, second = make_export(bare), make_export(rest, name="second.zip")

    def left_out() -> tuple[int, list[str]]:
        found = run(ValidateSpec(data_path="datasets/birds"), job_id="check")
        said = [each.message for each in found.warnings if "were left out" in each.message]
        return manifest.read(root.datasets / "birds").skipped_frames, said

    assert convert(first).skipped_frames == 3
    assert convert(first, add=True).skipped_frames == 3
    assert left_out() == (3, ["3 frames (75.0%) of the export have no annotations and were left out."])
    assert convert(second, add=True).skipped_frames == 2
    assert left_out() == (2, ["2 frames (40.0%) of the export have no annotations and were left out."])
    convert(make_export([build.frame(index, things.cat) for index in (3, 4)], name="third.zip"), add=True)
    assert left_out() == (0, [])


def test_a_frame_that_is_stated_twice_is_left_out_only_when_both_are_bare(
    convert: Run, make_export: Run, build: Any, things: Any
) -> None:
    frames = [build.frame(0, things.cat), build.frame(0), build.frame(1), build.frame(1, things.cat)]
    assert convert(make_export([*frames, build.frame(2), build.frame(2)])).skipped_frames == 1


def test_the_result_may_go_elsewhere_and_the_dataset_stays_as_it_was(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    convert(make_export([build.frame(0, things.cat)]))
    before = files_of(root.datasets / "birds")
    convert(make_export([build.frame(1, things.cat)], name="second.zip"), add=True, output="datasets/more")
    assert files_of(root.datasets / "birds") == before
    assert [row.frame_index for row in open_rows(root, "datasets/more")] == [0, 1]
    linked = [path for path in (root.datasets / "more").rglob("*.png") if path.stat().st_nlink > 1]
    assert not linked  # a client's path may not be a hard link


def test_new_frames_are_worded_with_the_seed_of_the_dataset(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    frames = [build.frame(index, things.cat) for index in range(12)]
    convert(make_export(frames))
    whole = list(open_rows(root, "datasets/birds"))
    convert(make_export(frames[:6]))
    convert(make_export(frames[6:], name="second.zip"), add=True, seed=999)
    assert list(open_rows(root, "datasets/birds")) == whole


def test_other_videos_are_appended(convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot) -> None:
    convert(make_export([build.frame(0, things.cat)]))
    files = {"annotations.json": build.annotations([build.frame(0, things.dog)], 30, 20, "other.mp4")}
    result = convert(make_export([build.frame(0, things.dog)], name="second.zip", files=files), add=True)
    assert [(row.video_id, row.labels) for row in open_rows(root, "datasets/birds")] == [
        ("v", ("cat",)),
        ("other", ("dog",)),
    ]
    assert "1 frames and 1 objects are new; 0 objects replaced in 0 frames" in result.message
    assert json.loads((root.datasets / "birds" / "manifest.json").read_text())["videos"] == ["v", "other"]


def test_a_frame_with_another_picture_keeps_its_own_and_says_so(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    convert(make_export([build.frame(0, things.cat), build.frame(1, things.cat)]))
    content = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(content, "JPEG")
    files = {"images/frame_000000.jpg": content.getvalue()}
    frames = [build.frame(0, things.dog), build.frame(1, things.dog)]
    second = make_export(frames, files=files, without=["images/frame_000000.png"], name="b.zip")
    result = convert(second, add=True)
    row, _ = rows = open_rows(root, "datasets/birds")
    assert row.labels == ("cat", "dog")
    assert rows.image_content(0, row.image or "") == build.png(30, 20, seed=0)
    assert [path.name for path in (root.datasets / "birds").rglob("frame_*0.*")] == ["frame_000000.png"]
    assert any("1 frames have another picture" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("name", "other"), [("视频一.mp4", "实验二.mp4"), ("видео", "קול"), ("", ""), ("🐈", "🐕"), ("", "export")]
)
def test_videos_whose_names_are_not_ascii_or_missing_are_not_mixed(
    name: str, other: str, convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    for source, title, thing in (("first.zip", name, things.cat), ("second.zip", other, things.dog)):
        frames = [build.frame(0, thing), build.frame(1, thing)]
        files = {"annotations.json": build.annotations(frames, 30, 20, title)}
        convert(make_export(frames, name=source, files=files), add=source == "second.zip")
    rows = open_rows(root, "datasets/birds")
    assert [row.labels for row in rows] == [("cat",), ("cat",), ("dog",), ("dog",)]
    assert len({row.video_id for row in rows}) == 2
    assert [rows.open_image(index).size for index in range(4)] == [(30, 20)] * 4
    assert all(root.confine_existing(f"datasets/birds/{row.image}") for row in rows)


def test_another_video_of_the_same_name_is_refused(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    convert(make_export([build.frame(index, things.cat) for index in range(3)]))
    before = files_of(root.datasets / "birds")
    files = {f"images/frame_{index:06d}.png": build.png(30, 20, seed=100 + index) for index in range(2)}
    second = make_export([build.frame(index, things.dog) for index in range(3)], files=files, name="second.zip")
    with pytest.raises(DatasetInvalid, match=r"2 of the 3 frames of video 'v' .* look different"):
        convert(second, add=True)
    assert files_of(root.datasets / "birds") == before


def test_the_same_video_compressed_anew_is_still_the_same(
    convert: Run, make_export: Run, build: Any, things: Any
) -> None:
    frames = [build.frame(index, things.cat) for index in range(3)]
    convert(make_export(frames))
    files = {}
    for index in range(3):
        content = io.BytesIO()
        Image.open(io.BytesIO(build.png(30, 20, seed=index))).save(content, "JPEG", quality=90)
        files[f"images/frame_{index:06d}.jpg"] = content.getvalue()
    without = [f"images/frame_{index:06d}.png" for index in range(3)]
    result = convert(make_export(frames, files=files, without=without, name="second.zip"), add=True)
    assert any("3 frames have another picture" in warning for warning in result.warnings)


def test_objects_without_an_id_are_the_same_only_when_label_and_mask_are(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    cat, lynx, dog = ({**each, "object_id": ""} for each in (things.cat, things.other_cat, things.dog))
    convert(make_export([build.frame(0, cat, cat, dog)]))
    convert(make_export([build.frame(0, cat, lynx)], name="second.zip"), add=True)
    assert open_rows(root, "datasets/birds")[0].labels == ("cat", "cat", "dog", "lynx")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": TargetTask.DETECT}, "task: describe, this asks for detect"),
        ({"target_format": DataFormat.COCO}, "target_format: llava, this asks for coco"),
    ],
)
def test_another_task_or_format_is_refused_before_anything_is_read(
    options: Any, says: str, convert: Run, make_export: Run, build: Any, things: Any
) -> None:
    convert(make_export([build.frame(0, things.cat)]))
    with pytest.raises(DatasetInvalid, match=says):
        convert(make_export([], name="second.zip", without=["annotations.json"]), add=True, **options)


def test_embedded_and_referenced_pictures_do_not_go_together(
    convert: Run, make_export: Run, build: Any, things: Any
) -> None:
    source = make_export([build.frame(0, things.cat)])
    convert(source, target_format=DataFormat.HUGGINGFACE)
    with pytest.raises(DatasetInvalid, match="embed_images: True, this asks for False"):
        convert(source, add=True, target_format=DataFormat.HUGGINGFACE, embed_images=False)


@pytest.mark.parametrize("frame", [0, 7])
def test_a_video_of_another_picture_size_is_refused(
    frame: int, convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    convert(make_export([build.frame(0, things.cat)]))
    before = files_of(root.datasets / "birds")
    second = make_export([build.frame(frame, things.dog)], name="second.zip", picture=(60, 40))
    with pytest.raises(DatasetInvalid, match=f"v-00000{frame} is 60x40 pixels large in the export, .* 30x20"):
        convert(second, add=True)
    assert files_of(root.datasets / "birds") == before


def coco_of(build: Any, root: DataRoot, name: str, *pictures: tuple[int, int, int]) -> str:
    """An archive of COCO instances with one object in each picture (id, width, height), named as COCO names them."""
    stated = {
        "images": [{"id": i, "file_name": f"{i:012d}.png", "width": w, "height": h} for i, w, h in pictures],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "bbox": [1, 1, 8, 8]}
            for i, _, _ in pictures
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    with zipfile.ZipFile(root.uploads / name, "w") as archive:
        archive.writestr("instances_val2017.json", json.dumps(stated))
        for i, width, height in pictures:
            archive.writestr(f"{i:012d}.png", build.png(width, height, seed=i))
    return f"uploads/{name}"


def test_a_dataset_of_pictures_of_several_sizes_grows(convert: Run, build: Any, root: DataRoot) -> None:
    convert(coco_of(build, root, "first.zip", (1, 30, 20), (2, 20, 30)))
    convert(coco_of(build, root, "second.zip", (3, 20, 30), (4, 40, 40)), add=True)
    rows = list(open_rows(root, "datasets/birds"))
    assert [(row.width, row.height) for row in rows] == [(30, 20), (20, 30), (20, 30), (40, 40)]
    other = coco_of(build, root, "third.zip", (1, 20, 30))
    with pytest.raises(DatasetInvalid, match=r"is 20x30 pixels large in the export, .* 30x20"):
        convert(other, add=True)


def test_only_a_dataset_of_ours_grows(convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot) -> None:
    source = make_export([build.frame(0, things.cat)])
    folder = root.datasets / "birds"
    for content in (None, "{}", '{"made_by": "split"}', "[" * 100_000):
        folder.mkdir(exist_ok=True)
        (folder / "llava_dataset.jsonl").write_text('{"id": "a", "conversations": []}')
        if content is not None:
            (folder / "manifest.json").write_text(content)
        with pytest.raises(DatasetInvalid, match="no dataset that a conversion wrote"):
            convert(source, add=True, output="datasets/more")


@pytest.mark.parametrize(
    "edit",
    [
        {"labels": ["cat", "dog"]},
        {"masks": [{"size": [20, 30], "counts": "0"}]},
        {"masks": [{"size": [20, 30], "counts": masks.write_compressed(np.array([600]), (20, 30))}]},
        {"image": "../../uploads/export.zip"},
        {"image": "images/gone.png"},
    ],
)
def test_a_row_that_somebody_broke_is_named(
    edit: dict[str, Any], convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    source = make_export([build.frame(0, things.cat)])
    options = {"task": TargetTask.POINT, "target_format": DataFormat.COCO}
    convert(source, **options)
    file = root.datasets / "birds" / "llava_dataset.jsonl"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    for frame in (0, 1):  # one that changes the row, one that keeps it
        second = make_export([build.frame(frame, things.dog)], name="second.zip")
        with pytest.raises(DatasetInvalid, match="Row 'v-000000' of datasets/birds"):
            convert(second, add=True, **options)


def test_splits_inside_the_dataset_are_not_taken_away(
    convert: Run, run: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    source = make_export([build.frame(index, things.cat) for index in range(10)])
    convert(source)
    run(SplitSpec(data_path="datasets/birds", output_dir="datasets/birds/parts"))
    with pytest.raises(OutputTaken, match="has 'parts' inside it"):
        convert(source, add=True)
    (root.datasets / "birds" / "parts").rename(root.datasets / "parts")
    convert(source, output="datasets/birds/old")
    with pytest.raises(OutputTaken, match="datasets/birds/old lies in datasets/birds and would go with it"):
        run(ConvertSpec(sam2_zip_path=source, output_dir="datasets/birds", add_to="datasets/birds/old"))


def test_a_cancel_while_merging_changes_nothing(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot, monkeypatch: Any
) -> None:
    source = make_export([build.frame(index, things.cat) for index in range(4)])
    convert(source)
    before = files_of(root.datasets / "birds")
    stop = Stop()
    monkeypatch.setattr("gpu_runner.sam2.growth._objects", lambda row: setattr(stop, "wanted", "cancel") or {})
    with pytest.raises(Stopped):
        convert(source, add=True, stop=stop)
    assert files_of(root.datasets / "birds") == before
    assert list((root.datasets / ".staging").iterdir()) == []


@pytest.mark.parametrize(("data_format", "embeds"), FORMATS)
def test_an_earlier_split_of_the_dataset_still_means_the_same_rows(
    data_format: DataFormat,
    embeds: bool,
    convert: Run,
    run: Run,
    make_export: Run,
    build: Any,
    things: Any,
    root: DataRoot,
) -> None:
    options = {"target_format": data_format, "embed_images": embeds}
    convert(make_export([build.frame(index, things.cat) for index in range(3, 13)]), **options)
    run(SplitSpec(data_path="datasets/birds", output_dir="datasets/parts", strategy="random"))
    before = [row.id for row in open_rows(root, "datasets/parts/train.jsonl")]
    convert(make_export([build.frame(index, things.dog) for index in range(5)], name="second.zip"), add=True, **options)
    rows = open_rows(root, "datasets/parts/train.jsonl")
    assert [row.id for row in rows] == before
    assert all(rows.open_image(index).size == (30, 20) for index in range(len(rows)))


def test_prepare_grows_a_dataset_and_checks_and_divides_the_whole(
    run: Run, make_export: Run, build: Any, things: Any
) -> None:
    first = make_export([build.frame(index, things.cat) for index in range(30)])
    run(PrepareSpec(sam2_zip_path=first, output_dir="datasets/birds"))
    second = make_export([build.frame(index, things.dog) for index in range(20, 40)], name="second.zip")
    result = run(PrepareSpec(sam2_zip_path=second, output_dir="datasets/birds", add_to="datasets/birds"))
    assert result.validate.statistics["total_samples"] == result.num_samples == 40
    assert result.success


def test_a_frame_that_is_met_again_keeps_its_time_and_size(
    convert: Run, make_export: Run, build: Any, things: Any, root: DataRoot
) -> None:
    convert(make_export([build.frame(3, things.cat)]))
    before = open_rows(root, "datasets/birds")[0]
    convert(make_export([{**build.frame(3, things.other_cat), "timestamp_sec": 99}], name="second.zip"), add=True)
    now = open_rows(root, "datasets/birds")[0]
    changed = {name for name in before.__struct_fields__ if getattr(before, name) != getattr(now, name)}
    assert changed == {"conversations", "masks", "bounding_boxes", "labels", "attributes"}
    assert np.isclose(now.timestamp_sec, 0.3)
    assert msgspec.json.encode(now) == (root.datasets / "birds" / "llava_dataset.jsonl").read_bytes().strip()
