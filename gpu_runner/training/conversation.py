"""Rows as chat messages, in the form that chat templates of processors and of plain tokenisers take.

Called by `encoding` alone. Words of a dataset never become control tokens: a label that spells `<image>` or an
end-of-turn mark is broken up, otherwise it would shift the pictures or end the answer.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from gpu_runner.rows import IMAGE_MARK, Row
from jobs.errors import DatasetInvalid

ROLES = {"human": "user", "gpt": "assistant"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# The form PaliGemma was trained in; its repositories bring no template. Its processor writes the newline behind the
# last question and, behind pictures, the BOS. Source: big_vision's README of PaliGemma, "suffix".
PREFIX_TEMPLATE = (
    "{% set ns = namespace(images=0) %}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set ns.images = ns.images + 1 %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if not ns.images %}{{ bos_token }}{% endif %}{% for message in messages %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if not loop.last or (add_generation_prompt and not ns.images) %}{{ '\n' }}{% endif %}{% endfor %}"
)

Message = dict[str, Any]
"""`{"role": "user" | "assistant", "content": str | [{"type": "text" | "image", ...}]}`"""


def messages_of(
    row: Row, images: Sequence[Image.Image | None], control_tokens: Iterable[str], in_parts: bool
) -> list[Message]:
    """The row's turns. `in_parts` gives content as a list of parts, as templates of vision models want it: a picture
    where its mark stands, all of them at the beginning where none is marked.

    An image that is None makes an empty part: enough to render the text.

    Raises:
        DatasetInvalid: the row marks more or fewer pictures than it has.
    """
    marked = sum(turn.value.count(IMAGE_MARK) for turn in row.conversations if turn.from_ == "human")
    if marked and marked != len(images):
        raise DatasetInvalid(
            f"Row {row.id!r} has {len(images)} pictures and marks the place of {marked}: give each picture one "
            f"{IMAGE_MARK} in a question."
        )
    waiting, messages = list(images), list[Message]()
    for turn in row.conversations:
        pieces = turn.value.split(IMAGE_MARK) if turn.from_ == "human" else [turn.value]
        taken = waiting if not marked else waiting[: len(pieces) - 1]
        waiting = waiting[len(taken) :]
        texts = [_plain(piece if len(pieces) == 1 else piece.strip(), control_tokens) for piece in pieces]
        content = _parts(texts, taken) if in_parts else "".join(texts)
        messages.append({"role": ROLES[turn.from_], "content": content})
    return messages


def _parts(texts: Sequence[str], images: Sequence[Image.Image | None]) -> list[dict[str, Any]]:
    """Texts with the pictures between them; pictures beside a single text come first."""
    shown = [{"type": "image", "image": image} for image in images]
    if len(texts) == 1:
        return [*shown, {"type": "text", "text": texts[0]}]
    parts = [{"type": "text", "text": texts[0]}] if texts[0] else []
    for image, text in zip(shown, texts[1:], strict=True):
        parts += [image, {"type": "text", "text": text}] if text else [image]
    return parts


def images_of(messages: Sequence[Message]) -> list[Image.Image]:
    """The pictures in their order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def without_last_exchange(messages: Sequence[Message]) -> list[Message]:
    """The conversation up to the answer before the last one; empty when there is none."""
    ends = [at for at, message in enumerate(messages[:-1]) if message["role"] == "assistant"]
    return list(messages[: ends[-1] + 1]) if ends else []


def answers_of(messages: Sequence[Message]) -> list[str]:
    return [text_of(message) for message in messages if message["role"] == "assistant"]


def before_last_answer(messages: Sequence[Message]) -> list[Message]:
    """What the model is shown when it is asked for the last answer."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def text_of(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def question_of(row: Row) -> str:
    """What is asked last, as people read it."""
    asked = [turn.value for turn in row.conversations if turn.from_ == "human"]
    return asked[-1].replace(IMAGE_MARK, "").strip() if asked else ""


def answer_of(row: Row) -> str:
    """What the row expects as its last answer."""
    given = [turn.value for turn in row.conversations if turn.from_ == "gpt"]
    return given[-1].strip() if given else ""


def control_tokens(processor: Any) -> tuple[str, ...]:
    """Texts the tokeniser turns into one special token."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def has_generation_marks(processor: Any) -> bool:
    """Whether the template says which of its text the assistant wrote."""
    return bool(_GENERATION.search(str(processor.chat_template or "")))


def render_text(processor: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    """The conversation as one text, each picture as its short mark."""
    rendered: str = processor.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=generation_prompt
    )
    return rendered


def _plain(text: str, control_tokens: Iterable[str]) -> str:
    for token in control_tokens:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
