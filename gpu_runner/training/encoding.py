"""A row becomes tensors: the chat template rendered, image tokens in place, labels on the answer alone.

Called by the training loop, evaluation, generation and the preview; the survey uses its lengths. A model learns only
what `labels` shows: prompt, image tokens and padding are -100, the answers and the last one's end token are not.

No family of models has code of its own here: what a row consists of is read off what the processor returns, and every
encoded row is checked (`_check`) before anybody learns from it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from gpu_runner.rows import Row, Turn
from gpu_runner.training import conversation
from gpu_runner.training.conversation import Message
from jobs.errors import DatasetInvalid, ModelUnavailable

NOT_TRAINED = -100  # torch's default ignore_index
_PIXELS = "pixel_"  # begins the names of what only eyes read; positions may need the rest, such as Qwen's grids
_OURS = ("attention_mask", "labels")  # what collate makes; PaliGemma's processor brings labels of its own


@dataclass(frozen=True)
class Encoded:
    """One row. `input_ids`, `labels` and `per_token` are (tokens,); the first dimension of `pictures` counts
    images or patches, whatever the model's processor makes of them.

    `image_tokens` are placeholders, as many as the pictures have features. `whole_length` is the number of tokens
    before anything was cut off, `images` how many pictures are left.
    """

    row_id: str
    input_ids: Tensor
    labels: Tensor
    per_token: dict[str, Tensor]
    pictures: dict[str, Tensor]
    image_tokens: int = 0
    images: int = 0
    whole_length: int = 0

    @property
    def is_truncated(self) -> bool:
        return self.whole_length > len(self.input_ids)


class RowEncoder:
    """Encodes rows with one model's processor, or its tokeniser where the model reads text only.

    `ends` are the token ids after which that model stops, `image_token_id` is the placeholder it puts a feature in.
    Pictures of more than `max_pixels` are scaled down to it.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int,
        ends: frozenset[int],
        *,
        image_token_id: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.max_length = max_length
        self.max_pixels = max_pixels
        self.sees_images = hasattr(processor, "image_processor")
        self._ends = torch.tensor(sorted(ends))
        # The model's own word first: Gemma 3's processor names the mark that is replaced, not what replaces it.
        self._image_token_id: int | None = (
            getattr(processor, "image_token_id", None) if image_token_id is None else image_token_id
        )
        self._lengths_by_size: dict[tuple[tuple[int, int], bool], tuple[int, int]] = {}
        self._marks_answers = conversation.has_generation_marks(processor) and self.tokenizer.is_fast
        self._control_tokens = conversation.control_tokens(processor)

    def encode(self, row: Row, images: Sequence[Image.Image]) -> Encoded:
        """The whole conversation, for training and for the loss. What is longer than max_length loses the end of its
        last answer; where the cut would go through a picture, its last question and answer.

        Raises:
            DatasetInvalid: the row has no answer, or nothing of it is left within max_length.
            ModelUnavailable: the model's chat template cannot be used, or it cannot see images.
        """
        messages = self._messages(row, images)
        if messages[-1]["role"] != "assistant":
            raise DatasetInvalid(f"Row {row.id!r} does not end with an answer: convert the export again.")
        whole = self._encode(row, messages)
        encoded = whole
        while self._is_cut_through_a_picture(encoded):
            messages = conversation.without_last_exchange(messages)
            if not messages:
                raise DatasetInvalid(pictures_too_long(f"Row {row.id}", self.max_length))
            encoded = self._encode(row, messages)
        return replace(self._within_length(encoded), whole_length=len(whole.input_ids))

    def encode_prompt(self, row: Row, images: Sequence[Image.Image]) -> Encoded:
        """Everything before the last answer, ready to be continued; no label is trained.

        Raises:
            DatasetInvalid: the prompt is longer than max_length.
        """
        messages = conversation.before_last_answer(self._messages(row, images))
        with _template_errors(row):
            rendered = self._render(messages, generation_prompt=True)
            self._check_images(row, rendered["input_ids"], messages)
        ids = rendered["input_ids"]
        if len(ids) > self.max_length:
            raise DatasetInvalid(
                f"The question of row {row.id!r} takes {len(ids)} tokens and max_length is {self.max_length}: "
                "raise max_length."
            )
        return self._encoded(row, messages, rendered, torch.zeros(len(ids), dtype=torch.bool))

    def image_tokens(self, image: Image.Image, *, among: int = 1) -> int:
        """How many placeholders a picture of this size takes in a row of so many pictures: LLaVA-OneVision looks closer
        at one that is alone."""
        return self._lengths(self._scaled(image).size, is_alone=among == 1)[0]

    def image_length(self, size: tuple[int, int], *, among: int = 1) -> int:
        """How many tokens stand in the place of the mark of a picture of this size (width, height): placeholders and
        what the processor writes around them."""
        return self._lengths(self._scaled_size(size), is_alone=among == 1)[1]

    def text_tokens(self, row: Row, *, prompt_only: bool = False) -> int:
        """Tokens of the rendered text, where a picture's mark counts as one; opens no image."""
        messages = self._messages(row, (None,) * len(row.pictures))
        if prompt_only:
            messages = conversation.before_last_answer(messages)
        return len(self._text_ids(messages, generation_prompt=prompt_only))

    def _encode(self, row: Row, messages: list[Message]) -> Encoded:
        """The conversation at its full length."""
        with _template_errors(row):
            rendered = self._render(messages)
            self._check_images(row, rendered["input_ids"], messages)
            trained = self._answer_mask(row, messages, rendered["input_ids"])
            if not bool(trained.any()):
                raise ModelUnavailable(_not_told_apart(row.id))
            if not self._answers_where_it_asks:
                rendered, trained = self._as_asked(row, messages, rendered, trained)
        rendered, trained = self._with_end(rendered, trained)
        encoded = self._encoded(row, messages, rendered, trained)
        self._check(encoded, conversation.answers_of(messages))
        return encoded

    def _messages(self, row: Row, images: Sequence[Image.Image | None]) -> list[Message]:
        if row.pictures and not self.sees_images:
            raise ModelUnavailable(
                f"Row {row.id!r} has an image and the model reads text only: choose a vision-language model."
            )
        if not row.conversations:
            raise DatasetInvalid(f"Row {row.id!r} has no conversation: convert the export again.")
        if len(images) != len(row.pictures):
            raise DatasetInvalid(
                f"Row {row.id!r} names {len(row.pictures)} pictures and {len(images)} are there: convert again."
            )
        scaled = [None if image is None else self._scaled(image) for image in images]
        return conversation.messages_of(row, scaled, self._control_tokens, self.sees_images)

    def _scaled(self, image: Image.Image) -> Image.Image:
        size = self._scaled_size(image.size)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    def _scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of the same shape, with at most max_pixels."""
        width, height = size
        if self.max_pixels is None or width * height <= self.max_pixels:
            return size
        factor = (self.max_pixels / (width * height)) ** 0.5
        return max(1, int(width * factor)), max(1, int(height * factor))

    def _lengths(self, size: tuple[int, int], *, is_alone: bool) -> tuple[int, int]:
        """Placeholders, and all tokens that replace the mark of a picture of this size; it is encoded once alone, once
        beside its like."""
        if (size, is_alone) not in self._lengths_by_size:
            count = 1 if is_alone else 2
            shown = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", size)}] * count}]
            ids = self._render(shown)["input_ids"]
            self._lengths_by_size[size, is_alone] = (
                int(self.is_placeholder(ids).sum()) // count,
                (len(ids) - len(self._text_ids(shown))) // count + 1,
            )
        return self._lengths_by_size[size, is_alone]

    def _render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, marks: bool = False
    ) -> dict[str, Tensor]:
        """What the processor makes of a conversation; what belongs to tokens has shape (tokens,)."""
        has_images = bool(conversation.images_of(messages))
        # A processor that wants a picture, such as PaliGemma's, leaves text alone to its tokeniser.
        reader = self.processor if has_images or not self._sees_prompts_whole else self.tokenizer
        out = reader.apply_chat_template(
            list(messages),
            chat_template=self.processor.chat_template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=generation_prompt,
            return_assistant_tokens_mask=marks,
        )
        shape = out["input_ids"].shape
        tensors = {name: torch.as_tensor(value) for name, value in out.items() if name not in _OURS}
        return self._without_second_bos(
            {name: value[0] if value.shape == shape else value for name, value in tensors.items()}
        )

    def _without_second_bos(self, rendered: dict[str, Tensor]) -> dict[str, Tensor]:
        """One BOS where the template writes it and the tokeniser again: no model was trained with two."""
        ids = rendered["input_ids"]
        is_bos = ids == (-1 if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id)
        kept = torch.ones(len(ids), dtype=torch.bool)
        kept[1:] = ~(is_bos[1:] & is_bos[:-1])
        return {name: value[kept] if value.shape == ids.shape else value for name, value in rendered.items()}

    def _text_ids(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> Tensor:
        """The tokens of the rendered text, each picture as its short mark."""
        text = conversation.render_text(self.processor, messages, generation_prompt=generation_prompt)
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _sees_prompts_whole(self) -> bool:
        """Whether the model reads its prompt in both directions and tells it from the answer by token types, as
        PaliGemma does: the other kind of types marks pictures, these are 0 on them."""
        if not self.sees_images:
            return False
        alone = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}]}]
        rendered = self._render(alone)
        types = rendered.get("token_type_ids")
        return types is not None and not bool(types[self.is_placeholder(rendered["input_ids"])].any())

    def _answer_mask(self, row: Row, messages: list[Message], ids: Tensor) -> Tensor:
        """(tokens,) bool: the answers. The first mask that holds them and nothing else."""
        answers = conversation.answers_of(messages)
        for mask in self._masks(messages, ids):
            if self._says(ids[mask], answers):
                return mask
        raise ModelUnavailable(_not_told_apart(row.id))

    def _masks(self, messages: list[Message], ids: Tensor) -> Iterator[Tensor]:
        """(tokens,) bool: where the answers may be. By the template's own marks, and by rendering with and without
        each answer: many templates lack the marks.

        Both together come first: LLaVA's template has the model write the blank before its answer, and leaves it out
        of its marks. All of that is read off the text, for pictures take long: behind the last one, tokens of the text
        and of the row count alike from the end. With a picture behind an answer they do not, and others lie there.
        """
        whole, marks = self._marked_text(messages)
        rest = self._mask_by_prefixes(messages, whole, self._text_ids)
        for in_text in (marks | rest, marks, rest):
            mask = _counted_from_the_end(in_text, len(ids))
            if torch.equal(ids[mask], whole[in_text]):
                yield mask
        rest = self._mask_by_prefixes(messages, ids, self._ids)
        if self._marks_answers:
            marks = self._render(messages, marks=True)["assistant_masks"].bool()
            yield marks | rest
            yield marks
        yield rest

    def _marked_text(self, messages: list[Message]) -> tuple[Tensor, Tensor]:
        """`_text_ids`, and which of them the template marks as the assistant's. A processor tells it of the row's own
        tokens and takes longer for that than for everything else it does."""
        if not self._marks_answers:
            ids = self._text_ids(messages)
            return ids, torch.zeros(len(ids), dtype=torch.bool)
        out = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.processor.chat_template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return torch.tensor(out["input_ids"]), torch.tensor(out["assistant_masks"]).bool()

    def _mask_by_prefixes(self, messages: list[Message], whole: Tensor, ids_of: Callable[..., Tensor]) -> Tensor:
        mask = torch.zeros(len(whole), dtype=torch.bool)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = ids_of(messages[:index], generation_prompt=True)
                after = ids_of(messages[: index + 1]) if index + 1 < len(messages) else whole
                mask[_common_length(before, whole) : _common_length(after, whole)] = True
        return mask

    def _ids(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> Tensor:
        return self._render(messages, generation_prompt=generation_prompt)["input_ids"]

    def _says(self, ids: Tensor, answers: Sequence[str]) -> bool:
        """Whether the tokens say the answers and nothing else, spaces and special tokens aside."""
        said = self.tokenizer.decode(ids, skip_special_tokens=True)
        is_text = len(ids) > 0 and not bool(self.is_placeholder(ids).any())
        return is_text and "".join(said.split()) == "".join("".join(answers).split())

    def _check_images(self, row: Row, ids: Tensor, messages: Sequence[Message]) -> None:
        images = conversation.images_of(messages)
        expected = [self.image_tokens(image, among=len(images)) for image in images]
        found = int(self.is_placeholder(ids).sum())
        if found != sum(expected) or 0 in expected:
            raise ModelUnavailable(
                f"Row {row.id!r} holds {found} image tokens where its pictures take {sum(expected)}: "
                "the model's chat template does not place the pictures."
            )

    def is_placeholder(self, ids: Tensor) -> Tensor:
        """(tokens,) bool: which of them stand for pictures."""
        return ids == (-1 if self._image_token_id is None else self._image_token_id)

    def _encoded(self, row: Row, messages: Sequence[Message], rendered: dict[str, Tensor], trained: Tensor) -> Encoded:
        ids = rendered.pop("input_ids")
        per_token = {name: value for name, value in rendered.items() if value.shape == ids.shape}
        if self._sees_prompts_whole:  # else the model would see the words it is to predict
            per_token["token_type_ids"] = (trained.cumsum(0) > 0).long()
        return Encoded(
            row_id=row.id,
            input_ids=ids,
            labels=ids.masked_fill(~trained, NOT_TRAINED),
            per_token=per_token,
            pictures={name: value for name, value in rendered.items() if value.shape != ids.shape},
            image_tokens=int(self.is_placeholder(ids).sum()),
            images=len(conversation.images_of(messages)),
            whole_length=len(ids),
        )

    def _check(self, encoded: Encoded, answers: Sequence[str]) -> None:
        """What must hold of every row, asked of the result alone: wrong labels train silently.

        Raises:
            ModelUnavailable: something else than the answers and the end is trained, or the end is not.
        """
        trained = encoded.labels[encoded.labels != NOT_TRAINED]
        if not self._says(trained, answers):
            raise ModelUnavailable(_not_told_apart(encoded.row_id))
        if not bool(torch.isin(encoded.labels[-1], self._ends)):
            raise ModelUnavailable(
                f"Row {encoded.row_id!r} does not end with a trained end token, so no end would ever be learned: "
                "give the model's tokenizer an eos_token."
            )
        if bool(encoded.images) != bool(encoded.pictures):
            raise ModelUnavailable(
                f"Row {encoded.row_id!r} has {encoded.images} pictures and the model's processor made "
                f"{sorted(encoded.pictures) or 'nothing'} of them: use another model."
            )

    @cached_property
    def _answers_where_it_asks(self) -> bool:
        """Whether the template writes an answer right behind the text that asks for it."""
        turns = (Turn("human", "Hello"), Turn("gpt", "there"), Turn("human", "And"), Turn("gpt", "here"))
        return all(self._answers_there(Row(id="", conversations=turns[:count])) for count in (2, 4))

    def _answers_there(self, row: Row) -> bool:
        messages = self._messages(row, ())
        try:
            asked, written = self._text_ids(messages[:-1], generation_prompt=True), self._text_ids(messages)
            trained = self._answer_mask(row, messages, self._render(messages)["input_ids"])
        except TemplateError:  # it takes no such conversation, and says so of each row that is one
            return True
        except ModelUnavailable:
            return False
        behind = len(trained) - (len(written) - len(asked))
        return torch.equal(written[: len(asked)], asked) and _begin_of_last(trained) == behind

    def _as_asked(
        self, row: Row, messages: list[Message], rendered: dict[str, Tensor], trained: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The last answer right behind the text that asks for it, which is what the model will be given. Blanks between
        them are the template's own: LLaVA-OneVision's writes one that it does not ask with.

        Raises:
            ModelUnavailable: they differ by more than blanks, such as the begin of a thought.
        """
        ids = rendered["input_ids"]
        trained = self._without_trailing_space(ids.flip(0), trained.flip(0)).flip(0)
        answer = _begin_of_last(trained)
        asked, written = self._text_ids(messages[:-1], generation_prompt=True), self._text_ids(messages)
        common = _common_length(asked, written)
        question = min(answer, len(ids) - (len(written) - common))  # behind the last picture both count alike
        more = asked[common:]
        asks, writes = self.tokenizer.decode(more), self.tokenizer.decode(ids[question:answer])
        if asks.strip() or writes.strip():
            raise ModelUnavailable(
                f"Row {row.id!r}: the model's chat template asks for an answer with {asks!r} and writes it behind "
                f"{writes!r}, so it would be learned where nobody asks for it. Use a model whose template does both "
                "alike, such as an Instruct variant that does not think aloud."
            )
        spliced = {
            name: torch.cat([value[:question], value.new_zeros(len(more)), value[answer:]])
            if value.shape == trained.shape
            else value
            for name, value in rendered.items()
        }
        spliced["input_ids"][question : question + len(more)] = more
        return spliced, torch.cat([trained[:question], trained.new_zeros(len(more)), trained[answer:]])

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

    def _is_cut_through_a_picture(self, encoded: Encoded) -> bool:
        return bool(self.is_placeholder(encoded.input_ids[self.max_length :]).any())

    def _within_length(self, encoded: Encoded) -> Encoded:
        """Cut at max_length from the right, where the last answer is."""
        if len(encoded.input_ids) <= self.max_length:
            return encoded
        labels = encoded.labels[: self.max_length]
        if not bool((labels != NOT_TRAINED).any()):
            raise DatasetInvalid(too_long(f"Row {encoded.row_id}", self.max_length))
        return replace(
            encoded,
            input_ids=encoded.input_ids[: self.max_length],
            labels=labels,
            per_token={name: value[: self.max_length] for name, value in encoded.per_token.items()},
        )


def _begin_of_last(trained: Tensor) -> int:
    """Where the last answer begins."""
    last = int(trained.nonzero()[-1])
    before = (~trained[:last]).nonzero()
    return int(before[-1]) + 1 if len(before) else 0


def collate(rows: Sequence[Encoded], pad_id: int, *, left: bool = False, has_pixels: bool = True) -> dict[str, Tensor]:
    """A batch: (rows, longest) for what belongs to tokens, padded right for training and left for generation.

    Rows of text may stand beside rows with pictures. Pictures are joined along their first dimension; where tiles or
    sizes differ, zeros fill up, which every family that has them leaves out again. A batch without pixels is for a
    model that is given what its eyes saw.
    """
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
        **{
            name: padded([row.per_token.get(name, torch.zeros_like(row.input_ids)) for row in rows], 0)
            for name in _names(row.per_token for row in rows)
        },
        **{
            name: _joined([row.pictures[name] for row in rows if name in row.pictures])
            for name in _names(row.pictures for row in rows)
            if has_pixels or not name.startswith(_PIXELS)
        },
    }


def _names(tensors: Iterable[dict[str, Tensor]]) -> list[str]:
    return list(dict.fromkeys(name for each in tensors for name in each))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Along the first dimension, the others filled up with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def filled(tensor: Tensor) -> Tensor:
        missing = [(0, most - size) for most, size in zip(shape, tensor.shape[1:], strict=True)]
        return torch.nn.functional.pad(tensor, [n for pair in reversed(missing) for n in pair])

    return torch.cat([filled(tensor) for tensor in tensors])


def too_long(whose: str, max_length: int) -> str:
    return f"{whose}: nothing of the answer is left within max_length {max_length}. Raise max_length."


def pictures_too_long(whose: str, max_length: int) -> str:
    return f"{whose}: the pictures alone do not fit into max_length {max_length}. Raise max_length or lower max_pixels."


def _not_told_apart(row_id: str) -> str:
    return (
        f"The answer of row {row_id!r} cannot be told from its question in the text that the model's chat template "
        "makes, so the model would learn the question too. Use a model whose template marks the assistant's text with "
        "{% generation %}."
    )


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


def _counted_from_the_end(mask: Tensor, length: int) -> Tensor:
    """A mask of so many tokens whose last ones are those of `mask`."""
    given = min(len(mask), length)
    return torch.cat([mask.new_zeros(length - given), mask[len(mask) - given :]])


def _common_length(one: Tensor, other: Tensor) -> int:
    """How many leading tokens two sequences share."""
    shortest = min(len(one), len(other))
    differ = (one[:shortest] != other[:shortest]).nonzero()
    return int(differ[0]) if len(differ) else shortest
