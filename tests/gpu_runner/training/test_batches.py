"""Batches are the same whoever makes them; what is kept is bounded."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gpu_runner.rows import open_rows
from gpu_runner.training import demo_model, models
from gpu_runner.training.batches import Batches, EncodedRows
from gpu_runner.training.encoding import RowEncoder, collate
from gpu_runner.training.plan import Plan
from gpu_runner.training.selection import Selection, everything
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot

ROWS = 14
Tensors = dict[str, torch.Tensor]
PLAN = Plan(rows=ROWS, batch_size=2, accumulation=2, epochs=3, max_steps=None, seed=3)


@pytest.fixture
def encoder(root: DataRoot) -> RowEncoder:
    processor = models.load_processor(demo_model.ensure(root.models / "demo-llava"), sees_images=True)
    return RowEncoder(processor, 512, frozenset({processor.tokenizer.eos_token_id}))


@pytest.fixture
def rows(root: DataRoot, write_frames: Callable[..., str]) -> Selection:
    return everything(open_rows(root, write_frames("train", ROWS)))


def all_of(kept: EncodedRows, encoder: RowEncoder, *, first: int = 0, workers: int) -> list[Tensors]:
    with Batches(kept, PLAN, encoder.tokenizer.pad_token_id, first=first, workers=workers) as batches:
        return [batch.tensors for step in range(first, PLAN.total_steps) for batch in batches.of_step(step)]


def are_equal(one: list[Tensors], other: list[Tensors]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_make_the_batches_that_the_plan_says(workers: int, rows: Selection, encoder: RowEncoder) -> None:
    expected = [
        collate([encoder.encode(*rows.open(index)) for index in indices], encoder.tokenizer.pad_token_id)
        for step in range(PLAN.total_steps)
        for indices in PLAN.micro_batches(step)
    ]
    assert are_equal(all_of(EncodedRows(encoder, rows), encoder, workers=workers), expected)


def test_beginning_late_opens_none_of_the_rows_before(
    rows: Selection, encoder: RowEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that going on takes as long after many steps as after few."""
    seen: list[int] = []
    real = Selection.open
    monkeypatch.setattr(Selection, "open", lambda self, index: seen.append(index) or real(self, index))
    late = PLAN.total_steps - 1
    all_of(EncodedRows(encoder, rows), encoder, first=late, workers=0)
    assert sorted(seen) == sorted(row for rows in PLAN.micro_batches(late) for row in rows)


@pytest.mark.parametrize("workers", [0, 3])
def test_rows_with_their_pictures_apart_are_known_by_their_index(
    workers: int, rows: Selection, encoder: RowEncoder
) -> None:
    with Batches(EncodedRows(encoder, rows), PLAN, 3, first=0, workers=workers, apart=True) as batches:
        for step in range(PLAN.total_steps):
            for indices, batch in zip(PLAN.micro_batches(step), batches.of_step(step), strict=True):
                assert list(batch.rows) == indices
                assert "pixel_values" not in batch.tensors
                assert [row.row_id for row in batch.rows.values()] == [f"row-{index}" for index in indices]


def test_beginning_in_the_middle_gives_what_would_have_come(rows: Selection, encoder: RowEncoder) -> None:
    whole = all_of(EncodedRows(encoder, rows), encoder, workers=2)
    before = sum(len(PLAN.micro_batches(step)) for step in range(5))
    assert are_equal(all_of(EncodedRows(encoder, rows), encoder, first=5, workers=2), whole[before:])


@pytest.mark.parametrize(("limit", "opened"), [(2**20 * 100, ROWS), (0, 3 * ROWS), (150_000, ROWS + 2 * (ROWS - 2))])
def test_rows_are_opened_once_as_far_as_memory_is_given(
    limit: int, opened: int, rows: Selection, encoder: RowEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Selection.open
    monkeypatch.setattr(Selection, "open", lambda self, index: seen.append(index) or real(self, index))
    kept = EncodedRows(encoder, rows, limit)  # a row takes about 51 kB with its picture of 64 x 64 floats
    assert are_equal(all_of(kept, encoder, workers=2), all_of(EncodedRows(encoder, rows, 0), encoder, workers=0))
    seen.clear()
    all_of(EncodedRows(encoder, rows, limit), encoder, workers=0)
    assert len(seen) == opened


def test_only_a_few_batches_are_made_ahead(rows: Selection, encoder: RowEncoder) -> None:
    made: list[int] = []
    enough = threading.Event()

    class Counting(EncodedRows):
        def get(self, index: int) -> Any:
            made.append(index)
            if len(made) >= 2 * 3:
                enough.set()
            return super().get(index)

    with Batches(Counting(encoder, rows), PLAN, 3, first=0, workers=2) as batches:
        steps: Iterator[Any] = batches.of_step(0)
        next(steps)
        assert enough.wait(20)
        threading.Event().wait(0.2)
        assert len(set(made)) <= 2 * 4


def test_a_bad_row_ends_the_run_at_its_own_step_and_the_threads_with_it(
    rows: Selection, encoder: RowEncoder, root: DataRoot
) -> None:
    bad = PLAN.micro_batches(2)[0][0]
    (root.datasets / "train" / "images" / f"{bad:04d}.png").write_bytes(b"no picture")
    with Batches(EncodedRows(encoder, rows), PLAN, 3, first=0, workers=2) as batches:
        assert len(list(batches.of_step(0))) == len(list(batches.of_step(1))) == 2
        with pytest.raises(DatasetInvalid, match=f"row-{bad}"):
            list(batches.of_step(2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
