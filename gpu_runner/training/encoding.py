"""A row becomes tensors: the chat template rendered, image tokens in place, labels on the answer alone.

Called by the training loop, evaluation and generation; the survey uses its lengths. A model learns only what
`labels` shows: prompt, image tokens and padding are -100, the answers and the last one's end token are not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from gpu_runner.rows import Row
from gpu_runner.training import conversation
from gpu_runner.training.conversation import Message
from jobs.errors import DatasetInvalid, ModelUnavailable

NOT_TRAINED = -100  # torch's default ignore_index


@dataclass(frozen=True)
class Encoded:
    """One row. `input_ids`, `labels` and `per_token` are (tokens,); the first dimension of `pictures` counts
    images or patches, whatever the model's processor makes of them."""

    row_id: str
    input_ids: Tensor
    labels: Tensor
    per_token: dict[str, Tensor]
    pictures: dict[str, Tensor]


class RowEncoder:
    """Encodes rows with one model's processor, or its tokeniser where the model reads text only.

    `ends` are the token ids after which that model stops.
    """

    def __init__(self, processor: Any, max_length: int, ends: frozenset[int]) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.max_length = max_length
        self.sees_images = hasattr(processor, "image_processor")
        self._ends = torch.tensor(sorted(ends))
        self._image_token_id: int | None = getattr(processor, "image_token_id", None)
        self._image_tokens_by_size: dict[tuple[int, int], int] = {}
        self._marks_answers = conversation.has_generation_marks(processor)
        self._control_tokens = conversation.control_tokens(processor)

    def encode(self, row: Row, image: Image.Image | None) -> Encoded:
        """The whole conversation, for training and for the loss.

        Raises:
            DatasetInvalid: the row has no answer, or nothing of it is left within max_length.
            ModelUnavailable: the model's chat template cannot be used, or it cannot see images.
        """
        messages = self._messages(row, image)
        if messages[-1]["role"] != "assistant":
            raise DatasetInvalid(f"Row {row.id!r} does not end with an answer: convert the export again.")
        with _template_errors(row):
            rendered = self._render(messages, marks=self._marks_answers)
            trained = self._answer_mask(row, messages, rendered)
            self._check_images(row, rendered["input_ids"], image)
        rendered, trained = self._with_end(rendered, trained)
        return self._within_length(_encoded(row, rendered, trained))

    def encode_prompt(self, row: Row, image: Image.Image | None) -> Encoded:
        """Everything before the last answer, ready to be continued; no label is trained.

        Raises:
            DatasetInvalid: the prompt is longer than max_length.
        """
        messages = conversation.before_last_answer(self._messages(row, image))
        with _template_errors(row):
            rendered = self._render(messages, generation_prompt=True)
            self._check_images(row, rendered["input_ids"], image)
        ids = rendered["input_ids"]
        if len(ids) > self.max_length:
            raise DatasetInvalid(
                f"The question of row {row.id!r} takes {len(ids)} tokens and max_length is {self.max_length}: "
                "raise max_length."
            )
        return _encoded(row, rendered, torch.zeros(len(ids), dtype=torch.bool))

    def image_tokens(self, image: Image.Image) -> int:
        """How many placeholders a picture of this size takes."""
        if image.size not in self._image_tokens_by_size:
            alone = self._render([{"role": "user", "content": [{"type": "image", "image": image}]}])
            self._image_tokens_by_size[image.size] = self._count_placeholders(alone["input_ids"])
        return self._image_tokens_by_size[image.size]

    def text_tokens(self, row: Row, *, prompt_only: bool = False) -> int:
        """Tokens of the rendered text, where a picture's mark counts as one; opens no image."""
        messages = self._messages(row, None)
        if prompt_only:
            messages = conversation.before_last_answer(messages)
        text = conversation.render_text(self.processor, messages, generation_prompt=prompt_only)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _messages(self, row: Row, image: Image.Image | None) -> list[Message]:
        if row.image is not None and not self.sees_images:
            raise ModelUnavailable(
                f"Row {row.id!r} has an image and the model reads text only: choose a vision-language model."
            )
        if not row.conversations:
            raise DatasetInvalid(f"Row {row.id!r} has no conversation: convert the export again.")
        return conversation.messages_of(row, image, self._control_tokens, self.sees_images)

    def _render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, marks: bool = False
    ) -> dict[str, Tensor]:
        """What the processor makes of a conversation; what belongs to tokens has shape (tokens,)."""
        out = self.processor.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=generation_prompt,
            return_assistant_tokens_mask=marks,
        )
        shape = out["input_ids"].shape
        tensors = {name: torch.as_tensor(value) for name, value in out.items() if name != "attention_mask"}
        return {name: value[0] if value.shape == shape else value for name, value in tensors.items()}

    def _answer_mask(self, row: Row, messages: list[Message], rendered: dict[str, Tensor]) -> Tensor:
        """(tokens,) bool: the answers. The template's own marks where they hold exactly the answers, else found
        by rendering with and without each answer: some processors shift the marks, many templates lack them."""
        ids, answers = rendered["input_ids"], conversation.answers_of(messages)
        marks = rendered.pop("assistant_masks", None)
        if marks is not None and self._says(ids[marks.bool()], answers):
            return marks.bool()
        mask = self._mask_by_prefixes(messages, ids)
        if not self._says(ids[mask], answers):
            raise ModelUnavailable(
                f"The answer of row {row.id!r} cannot be told from its question in the text that the model's chat "
                "template makes, so the model would learn the question too. Use a model whose template marks the "
                "assistant's text with {% generation %}."
            )
        return mask

    def _mask_by_prefixes(self, messages: list[Message], ids: Tensor) -> Tensor:
        mask = torch.zeros(len(ids), dtype=torch.bool)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(messages[:index], generation_prompt=True)["input_ids"]
                after = self._render(messages[: index + 1])["input_ids"]
                mask[_common_length(before, ids) : _common_length(after, ids)] = True
        return mask

    def _says(self, ids: Tensor, answers: Sequence[str]) -> bool:
        """Whether the tokens say the answers and nothing else, spaces and special tokens aside."""
        said = self.tokenizer.decode(ids, skip_special_tokens=True)
        return len(ids) > 0 and "".join(said.split()) == "".join("".join(answers).split())

    def _check_images(self, row: Row, ids: Tensor, image: Image.Image | None) -> None:
        expected = 0 if image is None else self.image_tokens(image)
        found = self._count_placeholders(ids)
        if found != expected or (image is not None and not expected):
            raise ModelUnavailable(
                f"Row {row.id!r} holds {found} image tokens where its picture takes {expected}: "
                "the model's chat template does not place the picture."
            )

    def _count_placeholders(self, ids: Tensor) -> int:
        return 0 if self._image_token_id is None else int(ids.eq(self._image_token_id).sum())

    def _with_end(self, rendered: dict[str, Tensor], trained: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The last answer ends with a trained end token; what the template writes behind it is cut off."""
        ids = rendered["input_ids"]
        trained = self._without_trailing_space(ids, trained)
        is_end = torch.isin(ids, self._ends)
        last = int(trained.nonzero()[-1])
        marked = (is_end & trained).nonzero().flatten().tolist()
        if marked and not self.tokenizer.decode(ids[marked[-1] + 1 : last + 1]).strip():
            return _cut(rendered, marked[-1] + 1), trained[: marked[-1] + 1]
        if last + 1 < len(ids) and is_end[last + 1]:
            trained[last + 1] = True
            return _cut(rendered, last + 2), trained[: last + 2]
        trained = torch.cat([trained[: last + 1], torch.ones(1, dtype=torch.bool)])
        return _extended(_cut(rendered, last + 1), self.tokenizer.eos_token_id), trained

    def _without_trailing_space(self, ids: Tensor, trained: Tensor) -> Tensor:
        """The mask without the blanks that a template writes behind each answer: they are none of its words."""
        kept = trained.clone()
        for at in reversed(trained.nonzero().flatten().tolist()):
            ends_an_answer = at + 1 == len(ids) or not kept[at + 1]
            if ends_an_answer and not self.tokenizer.decode(ids[at : at + 1]).strip():
                kept[at] = False
        return kept if bool(kept.any()) else trained

    def _within_length(self, encoded: Encoded) -> Encoded:
        """Cut at max_length from the right, where the answer is; a picture stands before any answer."""
        if len(encoded.input_ids) <= self.max_length:
            return encoded
        labels = encoded.labels[: self.max_length]
        if not bool((labels != NOT_TRAINED).any()):
            raise DatasetInvalid(too_long(f"Row {encoded.row_id}", self.max_length))
        return Encoded(
            row_id=encoded.row_id,
            input_ids=encoded.input_ids[: self.max_length],
            labels=labels,
            per_token={name: value[: self.max_length] for name, value in encoded.per_token.items()},
            pictures=encoded.pictures,
        )


def collate(rows: Sequence[Encoded], pad_id: int, *, left: bool = False) -> dict[str, Tensor]:
    """A batch: (rows, longest) for what belongs to tokens, padded right for training and left for generation."""
    longest = max(len(row.input_ids) for row in rows)

    def padded(tensors: Sequence[Tensor], value: int) -> Tensor:
        missing = [longest - len(tensor) for tensor in tensors]
        sides = [(n, 0) if left else (0, n) for n in missing]
        pairs = zip(tensors, sides, strict=True)
        return torch.stack([torch.nn.functional.pad(tensor, side, value=value) for tensor, side in pairs])

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_id),
        "attention_mask": padded([torch.ones_like(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], NOT_TRAINED),
        **{name: padded([row.per_token[name] for row in rows], 0) for name in rows[0].per_token},
        **{name: torch.cat([row.pictures[name] for row in rows]) for name in rows[0].pictures},
    }


def too_long(whose: str, max_length: int) -> str:
    return f"{whose}: nothing of the answer is left within max_length {max_length}. Raise max_length."


@contextmanager
def _template_errors(row: Row) -> Iterator[None]:
    """Raises ModelUnavailable for what a template or a processor does not take."""
    try:
        yield
    except (ValueError, TemplateError) as error:
        raise ModelUnavailable(
            f"The model's chat template or processor cannot take row {row.id!r} ({str(error)[:200]}): "
            "choose another model for this dataset."
        ) from error


def _encoded(row: Row, rendered: dict[str, Tensor], trained: Tensor) -> Encoded:
    ids = rendered.pop("input_ids")
    return Encoded(
        row_id=row.id,
        input_ids=ids,
        labels=ids.masked_fill(~trained, NOT_TRAINED),
        per_token={name: value for name, value in rendered.items() if value.shape == ids.shape},
        pictures={name: value for name, value in rendered.items() if value.shape != ids.shape},
    )


def _cut(rendered: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    shape = rendered["input_ids"].shape
    return {name: value[:length] if value.shape == shape else value for name, value in rendered.items()}


def _extended(rendered: dict[str, Tensor], token_id: int) -> dict[str, Tensor]:
    """One more token at the end; further per-token values get 0, which means text."""
    shape = rendered["input_ids"].shape
    return {
        name: torch.cat([value, value.new_tensor([token_id if name == "input_ids" else 0])])
        if value.shape == shape
        else value
        for name, value in rendered.items()
    }


def _common_length(one: Tensor, other: Tensor) -> int:
    """How many leading tokens two sequences share."""
    shortest = min(len(one), len(other))
    differ = (one[:shortest] != other[:shortest]).nonzero()
    return int(differ[0]) if len(differ) else shortest
