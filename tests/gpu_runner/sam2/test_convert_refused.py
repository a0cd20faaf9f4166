"""Converting: what is refused, and that it leaves nothing behind and nobody else's files touched."""

import io
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from gpu_runner.work import Stop, Stopped
from jobs.errors import DatasetInvalid, FailureReason, OutputTaken
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ConvertSpec, SplitSpec

Run = Callable[..., Any]


def convert(source: str, output: str = "datasets/out", **options: Any) -> ConvertSpec:
    return ConvertSpec(sam2_zip_path=source, output_dir=output, **options)


def test_missing_pictures_are_named_together(root: DataRoot, run: Run, make_export: Run, two_frames: Any) -> None:
    source = make_export(two_frames, without=["images/frame_000000.png", "images/frame_000006.png"])
    with pytest.raises(DatasetInvalid, match=r"no picture for 2 annotated frames.*v-000000, v-000006"):
        run(convert(source))
    assert list(root.datasets.iterdir()) == [root.datasets / ".staging"]
    assert list((root.datasets / ".staging").iterdir()) == []


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
    stranger: str, root: DataRoot, run: Run, make_export: Run, two_frames: Any, build: Any
) -> None:
    source = make_export(two_frames)
    run(convert(source))
    foreign = (root.datasets / "out" / stranger).resolve()
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    before = build.digest(root.datasets / "out")
    with pytest.raises(OutputTaken, match="no convert job wrote there") as raised:
        run(convert(source))
    assert raised.value.reason is FailureReason.CONFLICT
    assert build.digest(root.datasets / "out") == before


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
