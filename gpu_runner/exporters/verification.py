"""Train = serve: proof that an export says what the trained model said, before it is called done.

A few rows are rendered and run through the trained model in memory and through the export as reloaded from disk.
Tokens and pictures must be equal, logits equal within a tolerance. What is caught: weights that were lost or not
merged, another chat template, another image processor. Called by the recipe `export`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gpu_runner.rows import Row, Turn, open_rows
from gpu_runner.training import selection
from gpu_runner.training.encoding import Encoded, collate
from gpu_runner.training.models import Loaded
from jobs.errors import JobFailed, TrainingError
from jobs.paths import DataRoot
from jobs.training_config import TrainingConfig
from jobs.values import MAX_LENGTH_LIMIT

ROWS = 3
POSITIONS = 64  # of each row's end: every one of them has seen the whole picture and prompt
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest difference of two logits, relative to the largest logit. In fp32 merging differs by about 1e-6."""

_GREY_ROW = Row(
    id="built-in",
    image="grey.png",
    conversations=(Turn("human", "<image>\nWhat is in this picture?"), Turn("gpt", "Nothing but grey.")),
)
_GREY_PIXELS = 336


@dataclass(frozen=True)
class Probes:
    """Rows with their pictures, and the most tokens they may take."""

    rows: tuple[tuple[Row, tuple[Image.Image, ...]], ...]
    max_length: int
    max_pixels: int | None = None
    are_built_in: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a model makes of the probes: rows as tensors, and fp32 logits (positions, vocabulary) of each."""

    encoded: tuple[Encoded, ...]
    logits: tuple[Tensor, ...]


def probes(root: DataRoot, config: TrainingConfig, *, sees_images: bool) -> Probes:
    """A few rows of the job's own data, evenly spaced; a built-in one where that is gone."""
    try:
        rows = open_rows(root, config.val_data_path or config.train_data_path)
        chosen = selection.spread(rows, ROWS)
        opened = tuple(chosen.open(index) for index in chosen.indices)
    except (TrainingError, OSError):
        opened = ()
    if opened:
        return Probes(opened, config.max_length, config.max_pixels)
    images = (Image.new("RGB", (_GREY_PIXELS, _GREY_PIXELS), selection.GREY),) if sees_images else ()
    row = _GREY_ROW if sees_images else Row(id=_GREY_ROW.id, conversations=_GREY_ROW.conversations)
    return Probes(((row, images),), MAX_LENGTH_LIMIT, are_built_in=True)


def observe(loaded: Loaded, asked: Probes) -> Evidence:
    """Run the probes through a model with its own processor.

    Raises:
        JobFailed: the model answers with numbers that are none.
    """
    encoder = loaded.encoder(asked.max_length, asked.max_pixels)
    encoded = tuple(encoder.encode(row, images) for row, images in asked.rows)
    logits = tuple(_logits(loaded, row) for row in encoded)
    if not all(bool(row.isfinite().all()) for row in logits):
        raise JobFailed(
            "The model's answers are not finite numbers: its training diverged. Train again with a smaller "
            "learning_rate, or export another job."
        )
    return Evidence(encoded, logits)


def adapters_effect(trained: Loaded, seen: Evidence) -> float:
    """How much the adapters change the logits. Below the tolerance the logits don't tell whether they are there."""
    with trained.model.disable_adapter():
        bare = [_logits(trained, row) for row in seen.encoded]
    return _largest_difference(seen.logits, bare)


def check_same_logits(what: str, expected: Evidence, found: Evidence, dtype: torch.dtype) -> float:
    """The largest relative difference. Raises JobFailed when it is beyond the tolerance."""
    difference = _largest_difference(expected.logits, found.logits)
    if difference > TOLERANCE[dtype]:
        raise JobFailed(
            f"The export was not finished: {what} answers differently from the trained model (logits differ by "
            f"{difference:.1e} of their scale, {TOLERANCE[dtype]:.0e} is allowed). Nothing was published; export it "
            "again, and if this comes back report it with the job's output.log."
        )
    return difference


def check_same_inputs(expected: Evidence, found: Evidence) -> float:
    """How many tokens were compared. Raises JobFailed when a row became other tokens or another picture."""
    for before, after in zip(expected.encoded, found.encoded, strict=True):
        if not torch.equal(before.input_ids, after.input_ids):
            raise JobFailed(
                f"The export was not finished: its chat template or tokeniser turns row {before.row_id!r} into other "
                "tokens than the training did. Nothing was published; export it again."
            )
        if before.pictures.keys() != after.pictures.keys() or not all(
            torch.equal(before.pictures[name], after.pictures[name]) for name in before.pictures
        ):
            raise JobFailed(
                f"The export was not finished: its image processor turns the picture of row {before.row_id!r} into "
                "other numbers than the training did. Nothing was published; export it again."
            )
    return float(sum(len(row.input_ids) for row in expected.encoded))


def _logits(loaded: Loaded, row: Encoded) -> Tensor:
    batch = collate([row], loaded.tokenizer.pad_token_id)
    inputs = {name: tensor.to(loaded.compute.device) for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad(), loaded.compute.autocast():
        logits: Tensor = loaded.model(**inputs).logits
    return logits[0, -POSITIONS:].float().cpu()


def _largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Over all rows: the largest difference of two logits, divided by the row's largest logit."""
    pairs = zip(expected, found, strict=True)
    differences = [(one - other).abs().max() / one.abs().max() for one, other in pairs]
    return float(torch.stack(differences).max())
