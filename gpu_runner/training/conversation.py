"""Rows as chat messages, in the form that chat templates of processors and of plain tokenisers take.

Called by `encoding` alone. Words of a dataset never become control tokens: a label that spells `<image>` or an
end-of-turn mark is broken up, otherwise it would shift the pictures or end the answer.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from gpu_runner.rows import IMAGE_MARK, Row

ROLES = {"human": "user", "gpt": "assistant"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = dict[str, Any]
"""`{"role": "user" | "assistant", "content": str | [{"type": "text" | "image", ...}]}`"""


def messages_of(row: Row, image: Image.Image | None, control_tokens: Iterable[str], in_parts: bool) -> list[Message]:
    """The row's turns. `in_parts` gives content as a list of parts, as templates of vision models want it.

    Where `image` is None but the row has one, the picture's part is empty: enough to render the text.
    """
    messages: list[Message] = []
    for index, turn in enumerate(row.conversations):
        text = _plain(turn.value.replace(IMAGE_MARK, "", 1).strip() if index == 0 else turn.value, control_tokens)
        content: Any = text
        if in_parts:
            content = [{"type": "text", "text": text}]
            if index == 0 and row.image is not None:
                content.insert(0, {"type": "image", "image": image})
        messages.append({"role": ROLES[turn.from_], "content": content})
    return messages


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
