"""What a training holds, counted before it runs: parameters on the meta device, tokens of its rows, memory.

Called by the recipe plan; finetune keeps its prediction beside what it really took.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from gpu_runner.rows import Row, Rows
from gpu_runner.training import adapters
from gpu_runner.training.adapters import parameters_by_part
from gpu_runner.training.encoding import RowEncoder
from gpu_runner.training.models import Described, Loaded
from gpu_runner.training.selection import Selection
from gpu_runner.training.survey import Survey, survey
from jobs import footprint, model_shapes
from jobs.errors import DatasetInvalid, ModelUnavailable
from jobs.footprint import DeviceType, RowTokens
from jobs.model_shapes import ModelShape
from jobs.results import TokenCounts
from jobs.training_config import TrainingConfig

_CHARACTERS = 4  # a token, where there is no tokeniser


def shape(described: Described) -> ModelShape:
    """The model's dimensions with its exact counts. Raises ModelUnavailable when its config does not tell them."""
    counted = parameters_by_part(described.skeleton)
    found = model_shapes.shape_of(described.config.to_dict(), counted)
    if found is None:
        raise ModelUnavailable(
            f"The config of this {described.family} model does not tell its dimensions, so what it takes cannot be "
            "computed."
        )
    return found


def trainable(described: Described, config: TrainingConfig) -> dict[str, int]:
    """Parameters by part that the configuration trains, the adapters placed where training would place them.

    Raises:
        ModelUnavailable: adapters find no layers in this model.
    """
    if config.method == "full":
        return parameters_by_part(described.skeleton)
    with torch.device("meta"):
        adapted = adapters.attach(described.skeleton, config)
    return parameters_by_part(adapted, trainable_only=True)


def tokens(
    chosen: Selection, encoder: RowEncoder, beat: Callable[[], None] = lambda: None
) -> tuple[TokenCounts, list[int]]:
    """How long the rows are, and the indices of the longest ones, longest first. Reads no picture; `beat` as `survey`.

    Raises:
        DatasetInvalid: as `survey`.
    """
    found = survey(chosen, encoder, beat)
    lengths = np.array(found.lengths)
    rows = [chosen.rows[index] for index in found.by_length]  # taken apart into text, pictures and answer
    in_order = np.sort(lengths)[::-1]
    texts = [encoder.text_tokens(row) for row in rows]
    prompts = [encoder.text_tokens(row, prompt_only=True) for row in rows]
    pictures = [
        max(0, int(length) - text + _pictures(row)) for length, text, row in zip(in_order, texts, rows, strict=False)
    ]
    return (
        _counts(
            lengths,
            images=pictures,
            pictures=max(map(_pictures, rows)),
            trained=[max(1, text - prompt) for text, prompt in zip(texts, prompts, strict=True)],
            truncated=found.truncated,
        ),
        found.by_length,
    )


def estimated_tokens(chosen: Selection, config: TrainingConfig, of: ModelShape) -> TokenCounts:
    """How long the rows are about, without the model's tokeniser. Raises DatasetInvalid when there are none."""
    rows = [chosen.rows[index] for index in chosen.indices]
    if not rows:
        raise DatasetInvalid(f"{chosen.rows.name} has no rows: convert or split again.")
    images = [_pictures(row) * of.image_tokens for row in rows]
    answers = [
        sum(map(_text_length, (turn.value for turn in row.conversations if turn.from_ == "gpt"))) for row in rows
    ]
    texts = [sum(_text_length(turn.value) for turn in row.conversations) for row in rows]
    lengths = np.array(texts) + np.array(images)
    return _counts(
        lengths,
        images=images,
        pictures=max(map(_pictures, rows)),
        trained=answers,
        truncated=int((lengths > config.max_length).sum()),
        is_estimated=True,
    )


def row_tokens(counted: TokenCounts) -> RowTokens:
    """What of the counts decides the memory."""
    return RowTokens(longest=counted.max, trained=min(counted.trained_max, counted.max), images=counted.images_max)


def predicted_bytes(config: TrainingConfig, loaded: Loaded, found: Survey) -> int | None:
    """The peak that arithmetic expects of a process of a training that is about to run; None where it cannot tell."""
    of = model_shapes.shape_of(loaded.model.config.to_dict())
    if of is None:
        return None
    kind: DeviceType = "cuda" if loaded.compute.device.type == "cuda" else "cpu"
    longest = min(found.longest, config.max_length)
    answers = max(1, longest - of.image_tokens)
    rows = RowTokens(longest=longest, trained=answers, images=1 if of.tower else 0)
    return footprint.estimate(config, of, rows, device=kind).expected_bytes


def has_pictures(rows: Rows) -> bool:
    return len(rows) > 0 and rows[0].image is not None


def _pictures(row: Row) -> int:
    return len(row.pictures)


def _text_length(text: str) -> int:
    return math.ceil(len(text) / _CHARACTERS) + 4  # what a template puts around it


def _counts(
    lengths: np.ndarray,
    *,
    images: list[int],
    pictures: int,
    trained: list[int],
    truncated: int,
    is_estimated: bool = False,
) -> TokenCounts:
    p50, p95 = np.percentile(lengths, [50, 95])
    return TokenCounts(
        looked_at=len(lengths),
        p50=round(p50),
        p95=math.ceil(p95),
        max=int(lengths.max()),
        mean=float(lengths.mean()),
        image_max=max(images),
        images_max=pictures,
        trained_max=max(trained),
        truncated=truncated,
        is_estimated=is_estimated,
    )
