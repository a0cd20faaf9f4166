"""Answers of a model to rows: greedy, in left-padded batches, so the same question gets the same answer.

Used by evaluation and by the recipe generate.
"""

from collections.abc import Callable

import torch
from transformers import GenerationConfig

from gpu_runner.rows import Row
from gpu_runner.training import conversation
from gpu_runner.training.encoding import RowEncoder, collate
from gpu_runner.training.models import Loaded
from gpu_runner.training.scoring import Labels
from gpu_runner.training.selection import Selection, image_name
from jobs.paths import DataRoot
from jobs.results import Answer

Beat = Callable[[], None]
"""Called after each batch: shows life, and may raise Stopped."""


def answer_rows(
    loaded: Loaded,
    encoder: RowEncoder,
    selection: Selection,
    root: DataRoot,
    *,
    max_new_tokens: int,
    batch_size: int,
    beat: Beat,
) -> list[Answer]:
    """One answer a row, in the selection's order, judged by the labels its rows know.

    Raises:
        DatasetInvalid: a picture is missing, or a question is longer than the encoder's limit.
    """
    labels = Labels(selection.rows[index] for index in selection.indices)
    answers: list[Answer] = []
    for indices in selection.batches(batch_size):
        opened = [selection.open(index) for index in indices]
        batch = collate(
            [encoder.encode_prompt(row, images) for row, images in opened], loaded.tokenizer.pad_token_id, left=True
        )
        texts = _continued(loaded, batch, max_new_tokens)
        answers += [
            _answer(row, text, image_name(root, selection.rows, row), labels)
            for (row, _), text in zip(opened, texts, strict=True)
        ]
        beat()
    return answers


def longest_answer(encoder: RowEncoder, selection: Selection, *, most: int) -> int:
    """Tokens that the longest expected answer takes, its end included, up to `most`."""
    texts = [conversation.answer_of(selection.rows[index]) for index in selection.indices]
    return min(most, 2 + max((len(encoder.tokenizer(text)["input_ids"]) for text in texts), default=0))


def _continued(loaded: Loaded, batch: dict[str, torch.Tensor], max_new_tokens: int) -> list[str]:
    """The texts the model adds to a left-padded batch."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=loaded.tokenizer.pad_token_id,
        eos_token_id=sorted(loaded.end_ids),
    )
    inputs = {name: value.to(loaded.compute.device) for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), loaded.compute.autocast():
        sequences = loaded.model.generate(**inputs, generation_config=config)
    added = sequences[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.tokenizer.batch_decode(added, skip_special_tokens=True)]


def _answer(row: Row, predicted: str, image: str | None, labels: Labels) -> Answer:
    return Answer(
        row_id=row.id,
        image=image,
        prompt=conversation.question_of(row),
        expected=conversation.answer_of(row),
        predicted=predicted,
        correct=labels.is_correct(row, predicted),
    )
