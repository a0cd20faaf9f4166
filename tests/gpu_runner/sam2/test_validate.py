"""Validation: a sound dataset passes, and each rule notices the dataset that breaks it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.results import Finding, ValidateResult
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, SplitStrategy, ValidateSpec

Rows = list[dict[str, Any]]


@pytest.fixture
def rows(run: Callable[..., Any], root: DataRoot, make_export: Callable[..., str], build: Any) -> Rows:
    """Six sound rows of one video with two classes, converted for real; `check` writes them back."""
    frames = [
        build.frame(
            index,
            build.thing(build.rectangle(20, 30, 2 + index, 4, 8, 6), "cat", object_id=1),
            build.thing(build.rectangle(20, 30, 12 + index, 10, 10, 8), "dog", object_id=2),
        )
        for index in range(6)
    ]
    run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d"))
    return [json.loads(line) for line in (root.datasets / "d" / "llava_dataset.jsonl").read_text().splitlines()]


@pytest.fixture
def check(run: Callable[..., Any], root: DataRoot) -> Callable[..., ValidateResult]:
    def write_and_validate(rows: list[Any], level: Any = "basic") -> ValidateResult:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (root.datasets / "d" / "llava_dataset.jsonl").write_text("\n".join(lines))
        result: ValidateResult = run(ValidateSpec(data_path="datasets/d", level=level))
        return result

    return write_and_validate


def only(result: ValidateResult) -> Finding:
    findings = (*result.errors, *result.warnings)
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_dataset_passes_with_its_figures(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    result = check(rows)
    assert (result.passed, result.result, result.num_errors, result.num_warnings) == (True, "passed", 0, 0)
    statistics = result.statistics
    assert (statistics["total_samples"], statistics["total_objects"]) == (6, 12)
    assert statistics["labels"] == {"cat": 6, "dog": 6}
    assert statistics["objects_per_frame"]["mean"] == 2
    assert statistics["total_checks"] > 0


def _without_objects(row: dict[str, Any]) -> None:
    row.update(masks=[], bounding_boxes=[], labels=[], object_ids=[])


def _first_mask(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["masks"][0].update(fields)


def _first_box(*box: float) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["bounding_boxes"].__setitem__(0, list(box))


def _turn(number: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["conversations"][number].update(fields)


@pytest.mark.parametrize(
    ("spoil", "rule", "severity", "says"),
    [
        (_without_objects, "missing_annotations", "error", r"1 frames \(16.7%\) have no annotations"),
        (_first_mask(counts="PPPP"), "mask_integrity", "error", "1 masks cannot be decoded"),
        (_first_mask(counts=[600]), "mask_integrity", "error", "cover no pixel"),
        (_first_mask(counts=[-1, 601]), "mask_integrity", "error", "negative count"),
        (_first_mask(counts=[10, 20]), "mask_integrity", "error", "grid of 30x20 has 600"),
        (_first_mask(size=[0, 30]), "mask_integrity", "error", "cannot be decoded"),
        (_first_mask(size=[-20, -30]), "mask_integrity", "error", "cannot be decoded"),
        (lambda row: row["labels"].append("cat"), "mask_integrity", "error", "one mask, one box and one label"),
        (_first_box(1, 2, 3), "box_integrity", "error", "not four finite numbers"),
        (_first_box(1, 2, 0, 5), "box_integrity", "error", "not four finite numbers"),
        (_first_box(25, 2, 8, 6), "box_integrity", "error", "beyond their image"),
        (_first_box(-3, 2, 8, 6), "box_integrity", "error", "beyond their image"),
        (_first_box(3, 4, 8, 12), "box_integrity", "warning", "not those of their masks"),
        (lambda row: row.update(image="images/none.png"), "images", "error", "missing"),
        (lambda row: row.update(image="../../secret.png"), "images", "error", "leaves the dataset folder"),
        (lambda row: row.update(width=31), "images", "error", "another size"),
        (_turn(1, value="  "), "text", "error", "empty answer"),
        (_turn(0, value="What?"), "text", "error", "exactly one <image>"),
        (_turn(1, value="an <image>"), "text", "error", "exactly one <image>"),
        (_turn(1, **{"from": "human"}), "text", "error", "alternate"),
        (lambda row: row.update(conversations=[]), "text", "error", "alternate"),
        (lambda row: row.update(frame_index=0), "duplicate_frames", "warning", "repeat a frame"),
        (lambda row: row.update(id="v-000000"), "duplicate_frames", "error", "id of an earlier row"),
        (lambda row: row.update(labels=["cat", ""]), "class_balance", "warning", "no label"),
    ],
)
def test_one_spoilt_row_is_found_by_its_rule_and_named(
    spoil: Callable[[dict[str, Any]], None],
    rule: str,
    severity: str,
    says: str,
    rows: Rows,
    check: Callable[..., ValidateResult],
) -> None:
    spoil(rows[1])
    result = check(rows)
    found = [each for each in (*result.errors, *result.warnings) if each.rule == rule]
    assert found, result
    assert (found[0].severity, found[0].count) == (severity, 1)
    assert any(character.isalpha() for character in found[0].remedy)
    assert found[0].rows == (rows[1]["id"],)
    assert any(re.search(says, each.message) for each in found)
    assert result.passed is (severity == "warning")


def test_numbers_beyond_all_bounds_in_a_box_are_an_error(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    text = json.dumps(rows[1]).replace('"bounding_boxes": [[3.0', '"bounding_boxes": [[1e999')
    assert "1e999" in text
    result = check([rows[0], text, *rows[2:]])
    assert result.errors[0].rule in ("box_integrity", "rows")


def test_rows_that_cannot_be_read_are_counted_and_the_rest_is_checked(
    rows: Rows, check: Callable[..., ValidateResult]
) -> None:
    result = check(["{", *rows, '{"id": 1, "conversations": "{count}"}'])
    finding = only(result)
    assert (finding.rule, finding.count, finding.rows) == ("rows", 2, ("row 1", "row 8"))
    assert result.statistics["total_samples"] == 8


def test_pictures_that_look_the_same_are_a_warning(
    rows: Rows, check: Callable[..., ValidateResult], root: DataRoot
) -> None:
    folder = root.datasets / "d"
    (folder / rows[3]["image"]).write_bytes((folder / rows[0]["image"]).read_bytes())
    assert only(check(rows)).message == "1 pictures look the same as an earlier one."


def video(name: str, rows: Rows, pictures: list[Image.Image], folder: Path, quality: int | None = None) -> Rows:
    """Sound rows of a video of these pictures: PNG, or with a quality JPEG of half the size."""
    made = []
    for index, picture in enumerate(pictures):
        file = folder / "images" / f"{name}-{index}.{'jpg' if quality else 'png'}"
        (picture.resize((60, 40)) if quality else picture).save(file, **({"quality": quality} if quality else {}))
        named = {"id": f"{name}-{index}", "video_id": name, "frame_index": index, "image": f"images/{file.name}"}
        made.append({**rows[index % len(rows)], **named})
    return made


@pytest.fixture
def scenes() -> list[Image.Image]:
    draw = np.random.default_rng(4)
    pictures = (Image.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8)) for _ in range(20))
    return [picture.resize((30, 20), Image.Resampling.BICUBIC) for picture in pictures]


def of_duplicates(result: ValidateResult) -> list[str]:
    return [each.message for each in (*result.errors, *result.warnings) if each.rule == "duplicate_frames"]


def test_copies_of_a_video_that_were_saved_anew_are_a_warning(
    rows: Rows, check: Callable[..., ValidateResult], root: DataRoot, scenes: list[Image.Image]
) -> None:
    folder = root.datasets / "d"
    original = video("one", rows, scenes, folder)
    assert of_duplicates(check(original)) == []
    both = [*original, *video("two", rows, scenes, folder, quality=75)]
    (message,) = of_duplicates(check(both))
    assert message == "20 pictures look like an earlier one that is not of their video."
    few = [*(row for row in both if row["video_id"] == "one"), *both[-1:]]
    assert of_duplicates(check(few)) == []


def test_pictures_of_no_video_that_were_saved_anew_are_a_warning(
    rows: Rows, check: Callable[..., ValidateResult], root: DataRoot, scenes: list[Image.Image]
) -> None:
    folder = root.datasets / "d"
    both = [*video("one", rows, scenes, folder), *video("two", rows, scenes, folder, quality=90)]
    (message,) = of_duplicates(check([row | {"video_id": ""} for row in both]))
    assert int(message.split()[0]) >= 18


def test_a_video_that_stands_still_and_comes_back_is_no_copy(
    rows: Rows, check: Callable[..., ValidateResult], root: DataRoot, scenes: list[Image.Image]
) -> None:
    still = []
    for number in range(30):  # a camera's noise, and every third picture the first scene again
        pixels = np.asarray(scenes[number % 3]).astype(int) + np.random.default_rng(number).integers(-2, 3, (20, 30, 3))
        still.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    folder = root.datasets / "d"
    result = check([*video("one", rows, still, folder), *video("two", rows, scenes[3:], folder)])
    assert of_duplicates(result) == []


def test_a_picture_cut_short_is_an_error(rows: Rows, check: Callable[..., ValidateResult], root: DataRoot) -> None:
    path = root.datasets / "d" / rows[3]["image"]
    path.write_bytes(path.read_bytes()[:-300])
    finding = only(check(rows))
    assert (finding.rule, finding.severity, finding.rows) == ("images", "error", (rows[3]["id"],))


@pytest.mark.parametrize(("cats", "degree"), [(1, "severe"), (2, "moderate")])
def test_unequal_classes_are_a_warning_by_degree(
    cats: int, degree: str, rows: Rows, check: Callable[..., ValidateResult]
) -> None:
    for row in rows:
        row["labels"] = ["dog", "dog"]
    for row in rows[:cats]:
        row["labels"] = ["cat", "dog"]
    finding = only(check(rows))
    assert (finding.rule, finding.severity) == ("class_balance", "warning")
    assert degree in finding.message
    assert "augment" in finding.remedy


def test_no_label_anywhere_is_an_error(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    for row in rows:
        row["labels"] = ["", ""]
    finding = only(check(rows))
    assert (finding.rule, finding.severity, finding.count) == ("class_balance", "error", 12)


def test_tiny_objects_and_too_few_of_them_are_warnings(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    tiny = build.thing(build.rectangle(60, 60, 30, 20, 1, 1))
    source = make_export([build.frame(0, tiny), build.frame(1)], width=60, height=60)
    run(ConvertSpec(sam2_zip_path=source, output_dir="datasets/t", keep_empty_frames=True))
    result = run(ValidateSpec(data_path="datasets/t"))
    assert result.passed
    messages = " ".join(finding.message for finding in result.warnings)
    assert "less than 0.1% of their image" in messages
    assert "0.50 objects a frame" in messages
    assert "1 frames (50.0%) have no annotations" in messages


def test_an_object_that_jumps_or_flickers_is_a_warning(
    rows: Rows, check: Callable[..., ValidateResult], build: Any
) -> None:
    for row in rows[3:]:
        row["object_ids"] = ["2", "1"]
        row["bounding_boxes"][0] = [0.0, 0.0, 3.0, 3.0]
        row["bounding_boxes"][1] = [27.0, 17.0, 3.0, 3.0]
    result = check(rows)
    assert any("jump" in finding.message for finding in result.warnings)
    for row in rows[3:]:
        row["object_ids"] = ["1", "2"]
    rows[4]["object_ids"] = ["1", "3"]
    assert any("single frame (times: 1)" in finding.message for finding in check(rows).warnings)


def test_over_a_gap_in_the_video_nothing_jumps(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    for row in rows[3:]:
        row["frame_index"] += 500
        row["bounding_boxes"] = [[27.0, 17.0, 3.0, 3.0], [0.0, 0.0, 3.0, 3.0]]
    assert not any("jump" in finding.message for finding in check(rows).warnings)


def test_an_object_that_is_alone_flickers_where_its_frame_is_no_row(
    rows: Rows, check: Callable[..., ValidateResult]
) -> None:
    del rows[3]
    finding = only(check(rows))
    assert finding.message == "Objects are gone for a single frame (times: 2)."
    assert finding.rows == (rows[3]["id"],)
    for row in rows[3:]:
        row["frame_index"] += 7
    assert check(rows).warnings == ()


def test_swapped_identities_are_only_looked_for_when_strict(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    for row in rows[3:]:
        row["object_ids"] = ["2", "1"]
    assert not any("identities" in finding.message for finding in check(rows).warnings)
    assert any("identities" in finding.message for finding in check(rows, "strict").warnings)


@pytest.mark.parametrize("data_format", [DataFormat.LLAVA, DataFormat.HUGGINGFACE])
def test_held_out_frames_beside_training_frames_are_a_warning(
    data_format: DataFormat, run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k % 9, 4, 8, 6))) for k in range(60)]
    run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d", target_format=data_format))
    parts = {}
    for strategy in (SplitStrategy.RANDOM, SplitStrategy.TEMPORAL):
        parts[strategy] = run(SplitSpec(data_path="datasets/d", output_dir=f"datasets/{strategy}", strategy=strategy))
    leaking = run(ValidateSpec(data_path=parts[SplitStrategy.RANDOM].val_path, format_type=data_format))
    assert [finding.rule for finding in leaking.warnings] == ["leakage"]
    for name in (parts[SplitStrategy.RANDOM].train_path, parts[SplitStrategy.TEMPORAL].test_path):
        assert run(ValidateSpec(data_path=name, format_type=data_format)).warnings == ()


def test_a_broken_line_of_another_part_is_a_warning_and_the_rest_is_compared(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k % 9, 4, 8, 6))) for k in range(60)]
    run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d"))
    spec = SplitSpec(data_path="datasets/d", output_dir="datasets/s", strategy=SplitStrategy.RANDOM)
    parts = run(spec)
    train = root.path_of(parts.train_path)
    train.write_bytes(b"{\n" + train.read_bytes())
    warnings = run(ValidateSpec(data_path=parts.val_path)).warnings
    assert [(finding.rule, finding.rows[:1]) for finding in warnings if "cannot be read" in finding.message] == [
        ("leakage", ("train.jsonl row 1",))
    ]
    assert any("training frame" in finding.message for finding in warnings)


@pytest.mark.parametrize("data_format", [DataFormat.LLAVA, DataFormat.HUGGINGFACE])
def test_held_out_pictures_that_look_like_training_pictures_are_a_warning(
    data_format: DataFormat, run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    """Two videos show the same: a split by time keeps them apart, and yet nothing is held out."""
    frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k % 9, 4, 8, 6))) for k in range(30)]
    files = {}
    for video in ("a", "b", "c"):
        files[f"{video}/annotations.json"] = build.annotations(frames, 30, 20, f"{video}.mp4")
        files |= {f"{video}/images/frame_{k:06d}.png": build.png(30, 20, seed=k) for k in range(30)}
    export = make_export([], files=files, without=["annotations.json"])
    run(ConvertSpec(sam2_zip_path=export, output_dir="datasets/d", target_format=data_format))
    parts = run(SplitSpec(data_path="datasets/d", output_dir="datasets/s", strategy=SplitStrategy.TEMPORAL))
    result = run(ValidateSpec(data_path=parts.val_path, format_type=data_format))
    (finding,) = [each for each in result.warnings if each.rule == "leakage"]
    assert "look like one of training" in finding.message
    assert finding.count == parts.val_samples


def test_frames_of_the_export_that_were_left_out_are_a_warning(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k, 4, 8, 6))) for k in range(3)]
    run(ConvertSpec(sam2_zip_path=make_export([*frames, build.frame(3)]), output_dir="datasets/d"))
    finding = only(run(ValidateSpec(data_path="datasets/d")))
    assert (finding.rule, finding.severity, finding.count) == ("missing_annotations", "warning", 1)
    assert "1 frames (25.0%) of the export" in finding.message


def test_what_can_be_drawn_is_in_the_statistics(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    rows[0]["masks"] *= 20
    statistics = check(rows).statistics
    objects, areas = statistics["objects_histogram"], statistics["area_histogram"]
    assert len(objects.edges) == len(objects.counts) + 1
    assert objects.counts[2] == 5
    assert objects.counts[-1] == 1  # 40 objects, beyond the last edge
    assert areas.edges[0] == 0
    assert areas.edges[-1] == 1
    assert sum(areas.counts) == 50
    assert statistics["picture_sizes"] == {"30x20": 6}
    assert statistics["frames_per_video"] == {"v": 6}


def test_of_many_names_the_rarest_are_counted_as_one(rows: Rows, check: Callable[..., ValidateResult]) -> None:
    many = [{**rows[0], "id": f"{k}", "video_id": f"video {min(k, 118)}"} for k in range(120)]
    videos = check(many).statistics["frames_per_video"]
    assert len(videos) == 101
    assert videos["video 118"] == 2
    assert videos["all others"] == 19


def test_the_report_for_programs_says_the_same(
    rows: Rows, check: Callable[..., ValidateResult], root: DataRoot
) -> None:
    rows[1]["conversations"][1]["value"] = ""
    result = check(rows)
    folder = root.attempt(result.report_id, 1)
    said = json.loads(folder.report_data.read_bytes())
    assert said["dataset"] == "datasets/d"
    assert said["errors"] == json.loads(msgspec.json.encode(result.errors))
    assert len(said["statistics"]["area_histogram"]["edges"]) == len(said["statistics"]["area_histogram"]["counts"]) + 1
    assert said["recommendations"]
    journal = folder.journal.read_text()
    assert "validation_report" in journal
    assert "validation_data" in journal


def test_several_processes_find_what_one_finds(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k % 9, 4, 8, 6))) for k in range(200)]
    run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d"))
    (root.datasets / "d" / "images" / "v" / "frame_000150.png").unlink()
    spec = ValidateSpec(data_path="datasets/d")
    alone, together = run(spec), run(spec, cores=3)
    assert alone == together
    assert alone.errors[0].rows == ("v-000150",)


def test_a_dataset_without_rows_fails(root: DataRoot, run: Callable[..., Any]) -> None:
    (root.datasets / "empty").mkdir()
    (root.datasets / "empty" / "llava_dataset.jsonl").touch()
    assert only(run(ValidateSpec(data_path="datasets/empty"))).message == "There are no rows."


def test_what_is_no_dataset_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(DatasetInvalid, match="no dataset"):
        run(ValidateSpec(data_path="datasets/none"))


def test_a_wrong_format_is_said_and_the_rows_are_checked_all_the_same(
    rows: Rows, run: Callable[..., Any], root: DataRoot
) -> None:
    result = run(ValidateSpec(data_path="datasets/d", format_type=DataFormat.HUGGINGFACE))
    assert result.passed
    assert b"not huggingface" in root.attempt("job", 1).journal.read_bytes()


def test_the_report_says_what_was_found_and_cannot_be_injected_with_markup(
    rows: Rows, check: Callable[..., ValidateResult], root: DataRoot
) -> None:
    for row in rows:
        row["labels"] = ["<script>|x", "dog"]
    rows[1]["conversations"][1]["value"] = ""
    result = check(rows)
    report = root.attempt(result.report_id, 1).report.read_text()
    assert "**Failed.**" in report
    assert rows[1]["id"] in report
    assert "&lt;script&gt;\\|x: 6" in report
    assert "<script>" not in report


@pytest.mark.parametrize(
    ("name", "data_format"),
    [
        ("bedroom_classical.zip", DataFormat.LLAVA),
        ("idoctor40_as_exported.zip", DataFormat.LLAVA),
        ("idoctor40_as_exported.zip", DataFormat.HUGGINGFACE),
        ("sav_000001_manual.zip", DataFormat.LLAVA),
    ],
)
def test_genuine_exports_have_no_errors_no_paint_and_no_copies(
    name: str, data_format: DataFormat, root: DataRoot, run: Callable[..., Any], sample_zip: Callable[[str], Path]
) -> None:
    (root.uploads / name).write_bytes(sample_zip(name).read_bytes())
    converted = run(ConvertSpec(sam2_zip_path=f"uploads/{name}", output_dir="datasets/d", target_format=data_format))
    result = run(ValidateSpec(data_path="datasets/d", format_type=data_format, level="strict"))
    assert result.errors == ()
    assert not any("not of their video" in each.message for each in result.warnings)
    assert not [each for each in result.warnings if each.rule == "burnt_in_overlays"]
    assert result.statistics["total_samples"] == converted.num_samples
