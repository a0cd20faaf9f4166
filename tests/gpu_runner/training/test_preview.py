"""The recipe preview: what people are shown of a row is what a training learns from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from gpu_runner.recipes import preview
from gpu_runner.rows import LLAVA_FILE, Row, Turn, open_rows
from gpu_runner.training import demo_model, models
from gpu_runner.work import Stopped, Work
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.results import PreviewedRow
from jobs.specs import PreviewSpec
from jobs.training_config import TrainingConfig

WorkFor = Callable[..., Work[Any]]


@pytest.fixture
def frames(root: DataRoot, write_frames: Callable[..., str]) -> str:
    """Rows with one long one among them, and one of text."""
    name = write_frames("d", 6)
    folder = root.path_of(name)
    rows = list(open_rows(root, name))
    turns = (rows[4].conversations[0], Turn("gpt", "green " * 60))
    rows[4] = msgspec.structs.replace(rows[4], conversations=turns)
    rows.append(Row(id="text", conversations=(Turn("human", "Hello"), Turn("gpt", "there"))))
    (folder / LLAVA_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return name


def spec(data: str, **changes: Any) -> PreviewSpec:
    config = TrainingConfig(model_name="demo-llava", train_data_path=data, **changes)
    return PreviewSpec(config=config, each=1)


def trained(row: PreviewedRow) -> str:
    return "".join(piece.text for piece in row.pieces if piece.is_trained)


def test_the_first_and_the_longest_row_are_shown_piece_by_piece(frames: str, work_for: WorkFor) -> None:
    result = preview.run(work_for(spec(frames)))
    first, longest = result.rows
    assert [(row.row_id, row.reason) for row in result.rows] == [("row-0", "first"), ("row-4", "longest")]
    assert trained(first).endswith("<|im_end|>")
    assert trained(longest).count("green") == 60
    (picture,) = (piece for piece in first.pieces if piece.is_image)
    assert picture.tokens == first.image_tokens == demo_model.IMAGE_TOKENS
    assert "What colour is the object?" in "".join(piece.text for piece in first.pieces if not piece.is_trained)
    assert first.images == ("datasets/d/images/0000.png",)
    for row in result.rows:
        assert sum(piece.tokens for piece in row.pieces) == row.tokens
        assert sum(piece.tokens for piece in row.pieces if piece.is_trained) == row.trained_tokens
    assert result.looked_at == 7
    assert result.truncated == 0


def test_what_is_cut_off_is_said(frames: str, work_for: WorkFor) -> None:
    result = preview.run(work_for(spec(frames, max_length=128)))
    longest = result.rows[-1]
    assert longest.is_truncated
    assert longest.tokens == 128 < longest.tokens_uncut
    assert result.truncated == 1
    assert "1 of them" in result.message


def test_rows_are_shown_by_their_ids(frames: str, work_for: WorkFor) -> None:
    asked = msgspec.structs.replace(spec(frames), rows=("text", "row-2"))
    text, row = preview.run(work_for(asked)).rows
    assert (text.row_id, row.row_id) == ("text", "row-2")
    assert text.images == ()
    assert trained(text) == "there<|im_end|>"
    with pytest.raises(DatasetInvalid, match="row-99"):
        preview.run(work_for(msgspec.structs.replace(asked, rows=("row-99",)), job_id="other"))


def test_a_missing_picture_is_found_before_a_training_is(frames: str, root: DataRoot, work_for: WorkFor) -> None:
    (root.path_of(frames) / "images/0002.png").unlink()
    with pytest.raises(DatasetInvalid, match="row-2"):
        preview.run(work_for(spec(frames)))


def test_no_weights_are_loaded(frames: str, work_for: WorkFor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "_load_weights", refuse)
    assert preview.run(work_for(spec(frames))).rows


def test_the_encoder_without_weights_is_the_one_of_a_training(root: DataRoot, frames: str, tmp_path: Path) -> None:
    source = models.folder_source(demo_model.ensure(tmp_path / "demo"), "demo")
    loaded = models.load_base(source, device="cpu", dtype=torch.float32, offline=True)
    bare = models.load_encoder(source, 512, None, offline=True)
    rows = open_rows(root, frames)
    row, images = rows[0], rows.open_images(0)
    assert torch.equal(bare.encode(row, images).labels, loaded.encoder(512).encode(row, images).labels)


def test_a_cancel_ends_it(frames: str, work_for: WorkFor) -> None:
    work = work_for(spec(frames))
    work.stop.wanted = "cancel"
    with pytest.raises(Stopped):
        preview.run(work)
