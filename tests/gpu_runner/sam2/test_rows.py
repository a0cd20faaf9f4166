"""Opening datasets and splits: rows on demand, pictures only from the dataset's own folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from gpu_runner.rows import Turn, open_rows
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, ValidateSpec

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]


def write_dataset(folder: Path, *rows: dict[str, Any] | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "llava_dataset.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def dataset(root: DataRoot, build: Any) -> Path:
    folder = root.datasets / "d"
    write_dataset(folder, {"id": "a", "image": "images/a.png", "conversations": TURNS, "weather": "fine"})
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(build.png(5, 4))
    return folder


def test_a_row_that_somebody_else_wrote_needs_only_an_id_and_a_conversation(root: DataRoot, dataset: Path) -> None:
    (row,) = open_rows(root, "datasets/d")
    assert (row.id, row.conversations[1]) == ("a", Turn("gpt", "a cat"))
    assert (row.masks, row.video_id) == ((), "")


def test_lines_may_be_blank_and_the_last_may_lack_its_end(root: DataRoot) -> None:
    write_dataset(root.datasets / "d", {"id": "a", "conversations": []}, "", "\r", {"id": "b", "conversations": []})
    rows = open_rows(root, "datasets/d")
    assert [row.id for row in rows] == ["a", "b"]
    assert (rows.find("b"), rows.find("c"), rows[-1].id) == (1, None, "b")


def test_an_empty_file_has_no_rows(root: DataRoot) -> None:
    write_dataset(root.datasets / "d")
    assert len(open_rows(root, "datasets/d")) == 0


def test_opening_reads_no_row_and_a_broken_one_names_its_line(root: DataRoot) -> None:
    write_dataset(root.datasets / "d", {"id": "a", "conversations": []}, '{"id": 3}')
    rows = open_rows(root, "datasets/d")
    assert rows[0].id == "a"
    with pytest.raises(DatasetInvalid, match="Row 2 of datasets/d"):
        rows[1]


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "images/../../secret.png", "link.png", "a\0b"])
def test_a_picture_outside_the_dataset_folder_is_never_opened(
    image: str, root: DataRoot, dataset: Path, build: Any
) -> None:
    (root.datasets / "secret.png").write_bytes(build.png(5, 4))
    (dataset / "link.png").symlink_to("../secret.png")
    write_dataset(dataset, {"id": "a", "image": image, "conversations": TURNS})
    with pytest.raises(DatasetInvalid, match="leaves the dataset folder"):
        open_rows(root, "datasets/d").open_image(0)


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_missing_or_broken_picture_names_the_row(content: bytes | None, root: DataRoot, dataset: Path) -> None:
    (dataset / "images" / "a.png").unlink()
    if content is not None:
        (dataset / "images" / "a.png").write_bytes(content)
    with pytest.raises(DatasetInvalid, match="row 'a'"):
        open_rows(root, "datasets/d").open_image(0)


def test_a_picture_cut_short_names_the_row(root: DataRoot, dataset: Path, build: Any) -> None:
    (dataset / "images" / "a.png").write_bytes(build.png(50, 40)[:-200])
    with pytest.raises(DatasetInvalid, match="row 'a'"):
        open_rows(root, "datasets/d").open_image(0)


def test_a_row_without_a_picture_says_so(root: DataRoot) -> None:
    write_dataset(root.datasets / "d", {"id": "a", "conversations": TURNS})
    with pytest.raises(DatasetInvalid, match="has no image"):
        open_rows(root, "datasets/d").open_image(0)


@pytest.mark.parametrize("name", ["datasets/nothing", "datasets", "datasets/d/images", "datasets/d/images/a.png"])
def test_what_is_no_dataset_is_refused_with_what_was_expected(name: str, root: DataRoot, dataset: Path) -> None:
    with pytest.raises(DatasetInvalid, match="is no dataset"):
        open_rows(root, name)


def test_a_file_of_rows_without_a_configuration_finds_its_pictures_beside_it(
    root: DataRoot, dataset: Path, build: Any
) -> None:
    (dataset / "train.jsonl").write_bytes((dataset / "llava_dataset.jsonl").read_bytes())
    assert open_rows(root, "datasets/d/train.jsonl").open_image(0).size == (5, 4)


@pytest.fixture
def split_of(run: Callable[..., Any], make_export: Callable[..., str], build: Any) -> Callable[[DataFormat], str]:
    """Convert ten frames and split them; the training part's name."""

    def make(data_format: DataFormat) -> str:
        mask = build.rectangle(20, 30, 2, 4, 8, 6)
        source = make_export([build.frame(index, build.thing(mask)) for index in range(10)])
        run(ConvertSpec(sam2_zip_path=source, output_dir="datasets/made", target_format=data_format))
        return str(run(SplitSpec(data_path="datasets/made", output_dir="datasets/made/parts")).train_path)

    return make


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_rows_of_a_split_are_those_of_its_dataset_with_their_pictures(
    data_format: DataFormat, root: DataRoot, split_of: Callable[[DataFormat], str], build: Any
) -> None:
    rows = open_rows(root, split_of(data_format))
    whole = open_rows(root, "datasets/made")
    assert (len(rows), rows.format, rows.dataset) == (8, data_format, whole.dataset)
    for index, row in enumerate(rows):
        at = whole.find(row.id)
        assert at is not None
        assert row == whole[at]
        assert rows.open_image(index).tobytes() == whole.open_image(at).tobytes()
        assert rows.find(row.id) == index


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_a_split_whose_dataset_is_gone_says_so(
    data_format: DataFormat, root: DataRoot, split_of: Callable[[DataFormat], str]
) -> None:
    name = split_of(data_format)
    (root.datasets / "made" / "parts").rename(root.datasets / "parts")
    (root.datasets / "made").rename(root.datasets / "away")
    with pytest.raises(DatasetInvalid, match="is not there any more"):
        open_rows(root, name.replace("made/parts", "parts"))


def test_a_split_of_an_arrow_dataset_that_changed_since_is_noticed(
    root: DataRoot, split_of: Callable[[DataFormat], str], run: Any, make_export: Any, build: Any
) -> None:
    split_of(DataFormat.HUGGINGFACE)
    (root.datasets / "made" / "parts").rename(root.datasets / "parts")
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    source = make_export([build.frame(index, build.thing(mask)) for index in range(50, 53)])
    run(ConvertSpec(sam2_zip_path=source, output_dir="datasets/made", target_format=DataFormat.HUGGINGFACE))
    with pytest.raises(DatasetInvalid, match="converted again since"):
        open_rows(root, "datasets/parts/train.jsonl")[0]


def test_forked_readers_share_the_rows(root: DataRoot, split_of: Callable[[DataFormat], str]) -> None:
    rows = open_rows(root, split_of(DataFormat.LLAVA))
    expected = [row.id for row in rows]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ",".join(row.id for row in rows).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert [row.id for row in rows] == expected
    assert os.read(reader, 10_000).decode().split(",") == expected
    os.close(reader)


def test_an_arrow_folder_that_is_broken_is_refused(root: DataRoot) -> None:
    folder = root.datasets / "broken"
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../secret"}]}')
    with pytest.raises(DatasetInvalid, match="no Arrow dataset that can be read"):
        open_rows(root, "datasets/broken")


def test_a_picture_in_a_table_needs_no_path(root: DataRoot, run: Callable[..., Any], build: Any) -> None:
    """`datasets` writes none for pictures that it was given as bytes."""
    rows = [
        {"id": f"{number}", "conversations": TURNS, "image": {"bytes": content, "path": None}}
        for number, content in enumerate([build.png(5, 4), build.png(6, 3)])
    ]
    folder = root.datasets / "foreign"
    Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False)).save_to_disk(str(folder))
    opened = open_rows(root, "datasets/foreign")
    assert [opened.open_image(index).size for index in (0, 1)] == [(5, 4), (6, 3)]
    found = run(ValidateSpec(data_path="datasets/foreign"))
    assert found.statistics["total_images"] == 2
