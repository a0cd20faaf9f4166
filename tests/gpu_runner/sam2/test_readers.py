"""Every format of exports gives the same rows, from an archive as from a folder; what is none of them is named."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gpu_runner.rows import open_rows
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec

Run = Callable[..., Any]
HEIGHT, WIDTH = 20, 30


@pytest.fixture(params=["zip", "folder"])
def lay(request: pytest.FixtureRequest, root: DataRoot) -> Callable[[dict[str, Any]], ConvertSpec]:
    """Put files where an export lies; what is no bytes is written as JSON."""

    def put(files: dict[str, Any]) -> ConvertSpec:
        contents = {
            name: each if isinstance(each, bytes) else json.dumps(each).encode() for name, each in files.items()
        }
        if request.param == "zip":
            with zipfile.ZipFile(root.uploads / "export.zip", "w") as archive:
                for name, content in contents.items():
                    archive.writestr(name, content)
            return ConvertSpec(sam2_zip_path="uploads/export.zip", output_dir="datasets/out")
        for name, content in contents.items():
            path = root.uploads / "export" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return ConvertSpec(sam2_zip_path="uploads/export", output_dir="datasets/out")

    return put


def jpeg(seed: int = 0) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def left(build: Any) -> np.ndarray:
    return build.rectangle(HEIGHT, WIDTH, 2, 4, 8, 6)


@pytest.fixture
def right(build: Any) -> np.ndarray:
    return build.rectangle(HEIGHT, WIDTH, 15, 1, 10, 12)


LEFT, RIGHT = (2, 4, 8, 6), (15, 1, 10, 12)


def sav(build: Any, *frames: list[np.ndarray], video_id: str = "sav_1") -> dict[str, Any]:
    return {
        "video_id": video_id,
        "video_height": float(HEIGHT),
        "video_width": float(WIDTH),
        "masklet": [[build.encode(mask, "compressed") for mask in masks] for masks in frames],
        "masklet_id": [7, 9],
        "masklet_num": 2,
    }


def test_sa_v_masklets_become_objects_without_a_class_and_unseen_ones_are_left_out(
    lay: Run, run: Run, root: DataRoot, build: Any, left: Any, right: Any
) -> None:
    frames = {f"sav_1/{number:05d}.jpg": jpeg(number) for number in range(9)}
    result = run(lay({"sav_1_manual.json": sav(build, [left, right], [left, right & False], [left, right]), **frames}))
    rows = list(open_rows(root, "datasets/out"))
    assert (result.source_format, result.mask_order, result.num_objects) == ("sa-v", "column", 5)
    assert [row.bounding_boxes for row in rows] == [(LEFT, RIGHT), (LEFT,), (LEFT, RIGHT)]
    assert [row.frame_index for row in rows] == [0, 4, 8]
    assert [row.timestamp_sec for row in rows] == [0, 4 / 24, 8 / 24]
    assert {(row.video_id, label) for row in rows for label in row.labels} == {("sav_1", "object")}
    assert rows[1].object_ids == ("7",)


def test_frames_of_sa_v_that_are_numbered_through_are_found_too(
    lay: Run, run: Run, root: DataRoot, build: Any, left: Any
) -> None:
    frames = {f"images/{number:05d}.jpg": jpeg(number) for number in range(3)}
    run(lay({"sav_1_auto.json": sav(build, [left], [left], [left]), **frames}))
    assert [row.frame_index for row in open_rows(root, "datasets/out")] == [0, 1, 2]


def test_of_a_video_of_sa_v_annotated_twice_only_what_was_made_by_hand_is_read(
    lay: Run, run: Run, root: DataRoot, build: Any, left: Any, right: Any
) -> None:
    files = {"sav_1_auto.json": sav(build, [right]), "sav_1_manual.json": sav(build, [left]), "00000.jpg": jpeg()}
    result = run(lay(files))
    assert [row.bounding_boxes for row in open_rows(root, "datasets/out")] == [(LEFT,)]
    assert any("sav_1_auto.json" in warning for warning in result.warnings)


def sa1b(build: Any, number: int, *masks: np.ndarray) -> dict[str, Any]:
    return {
        "image": {"image_id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"sa_{number}.jpg"},
        "annotations": [
            {
                "id": k,
                "segmentation": build.encode(mask, "compressed"),
                "bbox": [0, 0, 1, 1],
                "area": 1,
                "predicted_iou": 0.9,
            }
            for k, mask in enumerate(masks)
        ],
    }


def test_each_picture_of_sa_1b_is_a_video_of_its_own(
    lay: Run, run: Run, root: DataRoot, build: Any, left: Any, right: Any
) -> None:
    files = {"sa_1.json": sa1b(build, 1, left, right), "sa_1.jpg": jpeg(1)}
    result = run(lay({**files, "sa_22.json": sa1b(build, 22, right), "sa_22.jpg": jpeg(22)}))
    rows = list(open_rows(root, "datasets/out"))
    assert (result.source_format, result.mask_order) == ("sa-1b", "column")
    assert [(row.video_id, row.bounding_boxes) for row in rows] == [("sa_1", (LEFT, RIGHT)), ("sa_22", (RIGHT,))]
    assert rows[0].labels == ("object", "object")
    assert rows[0].attributes[0] == {"predicted_iou": 0.9}


def instances(build: Any, left: Any, right: Any) -> dict[str, Any]:
    polygon = [15.0, 1.0, 25.0, 1.0, 25.0, 13.0, 15.0, 13.0]
    run_lengths = {"size": [HEIGHT, WIDTH], "counts": build.plain_runs(left)}
    return {
        "info": {"year": 2026},
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "segmentation": [polygon], "bbox": [15, 1, 10, 12]},
            {"id": 2, "image_id": 4, "category_id": 1, "segmentation": build.encode(left, "compressed"), "iscrowd": 0},
            {"id": 3, "image_id": 5, "category_id": 1, "segmentation": run_lengths, "iscrowd": 1},
        ],
        "images": [
            {"id": 5, "file_name": "clip/frame_0012.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 4, "file_name": "clip/frame_0007.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def test_coco_instances_are_read_with_polygons_and_run_lengths_in_the_order_of_their_frames(
    lay: Run, run: Run, root: DataRoot, build: Any, left: Any, right: Any
) -> None:
    files = {f"images/clip/frame_{number:04d}.jpg": jpeg(number) for number in (7, 12)}
    result = run(lay({"annotations/instances_train.json": instances(build, left, right), **files}))
    rows = list(open_rows(root, "datasets/out"))
    assert (result.source_format, result.mask_order, result.labels) == ("coco", "column", {"cat": 2, "dog": 1})
    assert [(row.video_id, row.frame_index, row.labels) for row in rows] == [
        ("clip_frame", 7, ("cat",)),
        ("clip_frame", 12, ("dog", "cat")),
    ]
    assert rows[1].bounding_boxes == (RIGHT, LEFT)
    assert rows[1].attributes[1] == {"iscrowd": 1}
    expected = coco.encode(np.asfortranarray(right.astype(np.uint8)))["counts"].decode()
    assert rows[1].masks[0].counts == expected


def test_pictures_of_coco_whose_numbers_collide_are_kept_apart(
    lay: Run, run: Run, root: DataRoot, build: Any, left: Any, right: Any
) -> None:
    stated = instances(build, left, right)
    stated["images"][0]["file_name"], stated["images"][1]["file_name"] = "7.jpg", "007.jpg"
    run(lay({"all.json": stated, "7.jpg": jpeg(1), "007.jpg": jpeg(2)}))
    rows = open_rows(root, "datasets/out")
    assert [row.video_id for row in rows] == ["all", "all"]
    assert rows.open_image(0).tobytes() != rows.open_image(1).tobytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda coco: coco["annotations"][0].update(image_id=99), r"image_id 99 is in no entry of /images"),
        (lambda coco: coco["annotations"][1].update(category_id=99), r"#/annotations/1/category_id 99 is in no entry"),
        (lambda coco: coco["images"][0].update(id=4), r"#/images: the id 4 is there more than once"),
        (lambda coco: coco["images"][0].update(id="x"), r"#/images/0/id"),
        (lambda coco: coco["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), r"/annotations/0/segmentation has 4"),
        (lambda coco: coco["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 1e6]]), r"far outside"),
        (lambda coco: coco["annotations"][0].update(segmentation=[[0, 0, 29, 19] * 90_000]), r"has an outline of"),
        (lambda coco: coco["annotations"][0].update(segmentation=[]), r"has no polygon"),
        (lambda coco: coco["annotations"][0].update(segmentation=3), r"#/annotations/0/segmentation"),
        (lambda coco: coco["annotations"][1]["segmentation"].update(size=[9, 9]), r"another grid"),
        (lambda coco: coco["categories"][0].update(name="<image>"), r"#/categories/0/name holds the reserved word"),
        (lambda coco: coco["images"][0].update(file_name="../../etc/passwd.jpg"), r"no picture for 1 annotated frames"),
    ],
)
def test_coco_that_cannot_be_used_is_refused_with_its_place(
    change: Run, says: str, lay: Run, run: Run, build: Any, left: Any, right: Any
) -> None:
    stated = instances(build, left, right)
    change(stated)
    files = {f"clip/frame_{number:04d}.jpg": jpeg(number) for number in (7, 12)}
    with pytest.raises(DatasetInvalid, match=says):
        run(lay({"all.json": stated, **files}))


def many(build: Any, name: str, count: int = 170) -> dict[str, Any]:
    """An export in that format."""
    masks = [build.rectangle(HEIGHT, WIDTH, 2 + number % 9, 4, 8, 6) for number in range(count)]
    pictures = {f"clip/{number:05d}.jpg": jpeg(number) for number in range(count)}
    if name == "sa-v":
        return {"clip_manual.json": sav(build, *([mask] for mask in masks), video_id="clip"), **pictures}
    rles = [build.encode(mask, "compressed") for mask in masks]
    stated = [{"id": k, "file_name": f"{k:05d}.jpg", "width": WIDTH, "height": HEIGHT} for k in range(count)]
    if name == "sa-1b":
        documents = {
            f"clip/{k:05d}.json": {
                "image": {"image_id": k, **stated[k]},
                "annotations": [{"id": k, "segmentation": rle}],
            }
            for k, rle in enumerate(rles)
        }
        return {**documents, **pictures}
    objects = [{"id": k, "image_id": k, "category_id": 1, "segmentation": rle} for k, rle in enumerate(rles)]
    categories = [{"id": 1, "name": "cat"}]
    return {"clip/all.json": {"images": stated, "annotations": objects[::-1], "categories": categories}, **pictures}


@pytest.mark.parametrize("name", ["sa-v", "sa-1b", "coco"])
def test_several_processes_read_what_one_reads(name: str, lay: Run, run: Run, root: DataRoot, build: Any) -> None:
    spec = lay(many(build, name))
    assert run(spec).source_format == name
    alone = {path: path.read_bytes() for path in (root.datasets / "out").rglob("*") if path.is_file()}
    run(spec, cores=3)
    assert alone == {path: path.read_bytes() for path in (root.datasets / "out").rglob("*") if path.is_file()}
    assert len(alone) == 173


def test_where_several_formats_are_there_the_tools_own_is_read_and_the_other_named(
    lay: Run, run: Run, build: Any, left: Any, right: Any
) -> None:
    own = build.annotations([build.frame(0, build.thing(left))], WIDTH, HEIGHT)
    result = run(lay({"annotations.json": own, "coco.json": instances(build, left, right), "000000.jpg": jpeg()}))
    assert (result.source_format, result.num_samples) == ("sam2", 1)
    assert any("coco.json" in warning for warning in result.warnings)


def test_the_same_files_give_the_same_hash_and_one_more_byte_another(lay: Run, run: Run, build: Any, left: Any) -> None:
    own = build.annotations([build.frame(0, build.thing(left))], WIDTH, HEIGHT)
    hashes = [
        run(lay({"annotations.json": own + more, "000000.jpg": jpeg()})).source_sha256 for more in (b"", b"", b" ")
    ]
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1] != hashes[2]


# -- folders


@pytest.fixture
def folder(root: DataRoot, build: Any, left: Any) -> Path:
    made = root.uploads / "export"
    (made / "images").mkdir(parents=True)
    (made / "annotations.json").write_bytes(build.annotations([build.frame(0, build.thing(left))], WIDTH, HEIGHT))
    (made / "images" / "frame_000000.png").write_bytes(build.png(WIDTH, HEIGHT))
    return made


def spec_of(folder: Path) -> ConvertSpec:
    return ConvertSpec(sam2_zip_path=f"uploads/{folder.name}", output_dir="datasets/out")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "folder"])
def test_a_picture_that_is_no_file_of_the_folders_own_is_not_taken(
    kind: str, folder: Path, run: Run, build: Any, tmp_path: Path
) -> None:
    picture = folder / "images" / "frame_000000.png"
    outside = picture.rename(tmp_path / "secret.png")
    if kind == "symlink":
        picture.symlink_to(outside)
    elif kind == "hard link":
        picture.hardlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(picture)
    else:
        picture.mkdir()
    with pytest.raises(DatasetInvalid, match=r"refused|no picture|cannot be used"):
        run(spec_of(folder))


@pytest.mark.parametrize("target", ["annotations.json", "images"])
def test_links_in_a_folder_are_refused_wherever_they_lead(target: str, folder: Path, run: Run) -> None:
    (folder / target).rename(folder.parent / "elsewhere")
    (folder / target).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(DatasetInvalid, match=f"The folder is refused: '{target}' is a link"):
        run(spec_of(folder))


def test_hidden_files_of_a_folder_are_passed_over(folder: Path, run: Run) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache" / "annotations.json").write_text("junk")
    assert run(spec_of(folder)).num_samples == 1
