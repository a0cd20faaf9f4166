"""What a model is shown and what it learns from a row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import LLAVA_TEMPLATE, qwen

from gpu_runner.rows import Row, Turn
from gpu_runner.training import demo_model, models
from gpu_runner.training.encoding import NOT_TRAINED, RowEncoder, collate
from jobs.errors import DatasetInvalid, ModelUnavailable

PICTURE = Image.new("RGB", (90, 70), (200, 30, 30))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = demo_model.ensure(tmp_path_factory.mktemp("models") / "demo-llava")
    return models.load_processor(folder, sees_images=True)


@pytest.fixture
def encoder(processor: Any) -> RowEncoder:
    return encoder_of(processor)


def encoder_of(processor: Any, max_length: int = 512) -> RowEncoder:
    return RowEncoder(processor, max_length, frozenset({processor.tokenizer.eos_token_id}))


def row(answer: str = "red", question: str = "What colour is it?", image: str | None = "images/0.png") -> Row:
    mark = "<image>\n" if image else ""
    turns = (Turn("human", f"{mark}{question}"), Turn("gpt", answer))
    return Row(id="row-0", image=image, conversations=turns, width=90, height=70)


def trained_text(encoder: RowEncoder, labels: torch.Tensor) -> str:
    return str(encoder.tokenizer.decode(labels[labels != NOT_TRAINED]))


def with_template(processor: Any, template: str) -> Any:
    """A processor like this one with another chat template."""
    return type(processor)(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        num_additional_image_tokens=processor.num_additional_image_tokens,
        chat_template=template,
    )


def test_only_the_answer_and_its_end_are_trained(encoder: RowEncoder) -> None:
    encoded = encoder.encode(row("red"), (PICTURE,))
    assert trained_text(encoder, encoded.labels) == "red<|im_end|>"
    assert encoded.input_ids[-1] == encoder.tokenizer.eos_token_id
    assert (encoded.labels[encoded.labels != NOT_TRAINED] == encoded.input_ids[encoded.labels != NOT_TRAINED]).all()


def test_every_answer_of_a_longer_conversation_is_trained_and_no_question(encoder: RowEncoder) -> None:
    turns = (*row("red").conversations, Turn("human", "And the shape?"), Turn("gpt", "a circle"))
    encoded = encoder.encode(Row(id="r", image="i.png", conversations=turns), (PICTURE,))
    assert trained_text(encoder, encoded.labels) == "red<|im_end|>a circle<|im_end|>"


def test_a_picture_has_as_many_placeholders_as_features(encoder: RowEncoder) -> None:
    encoded = encoder.encode(row(), (PICTURE,))
    placeholders = int((encoded.input_ids == encoder.processor.image_token_id).sum())
    assert placeholders == demo_model.IMAGE_TOKENS == encoder.image_tokens(PICTURE)
    assert encoded.pictures["pixel_values"].shape == (1, 3, 64, 64)


def test_a_template_without_marks_gives_the_same_labels(processor: Any, encoder: RowEncoder) -> None:
    plain = demo_model.CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    unmarked = encoder_of(with_template(processor, plain))
    assert torch.equal(unmarked.encode(row(), (PICTURE,)).labels, encoder.encode(row(), (PICTURE,)).labels)


@pytest.mark.parametrize("marks", [True, False])
def test_pictures_are_processed_once_a_row(marks: bool, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        LLAVA_TEMPLATE if marks else LLAVA_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    encoder = encoder_of(with_template(processor, template))
    encoder.encode(row(), (PICTURE,))  # what the processor is like is found out once
    asked: list[dict[str, Any]] = []
    real = RowEncoder._render

    def render(self: RowEncoder, messages: Any, **how: Any) -> Any:
        asked.append(how)
        return real(self, messages, **how)

    monkeypatch.setattr(RowEncoder, "_render", render)
    turns = (*row("red").conversations, Turn("human", "And the shape?"), Turn("gpt", "a circle"))
    encoded = encoder.encode(Row(id="r", image="i.png", conversations=turns), (PICTURE,))
    assert trained_text(encoder, encoded.labels).split() == ["red", "a", "circle<|im_end|>"]
    assert asked == [{}]


def test_a_template_whose_marks_leak_the_prompt_is_not_believed(processor: Any, encoder: RowEncoder) -> None:
    start = "{% for message in messages %}"
    plain = demo_model.CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    leaking = plain.replace(start, f"{start}{{% generation %}}").replace(
        "{% endfor %}{% if add", "{% endgeneration %}{% endfor %}{% if add"
    )
    encoded = encoder_of(with_template(processor, leaking)).encode(row(), (PICTURE,))
    assert trained_text(encoder, encoded.labels) == "red<|im_end|>"


def test_labels_that_hold_more_than_the_answer_are_refused(
    encoder: RowEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything(_self: RowEncoder, _row: Row, _messages: Any, ids: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(ids, dtype=torch.bool)

    monkeypatch.setattr(RowEncoder, "_answer_mask", everything)
    with pytest.raises(ModelUnavailable, match="row 'row-0'"):
        encoder.encode(row(), (PICTURE,))


def test_an_end_is_added_where_the_template_writes_none(processor: Any, encoder: RowEncoder) -> None:
    endless = demo_model.CHAT_TEMPLATE.replace("{{ '<|im_end|>' }}{% endgeneration %}", "{% endgeneration %}")
    encoded = encoder_of(with_template(processor, endless)).encode(row(), (PICTURE,))
    assert trained_text(encoder, encoded.labels) == "red<|im_end|>"


def test_the_space_a_template_writes_behind_an_answer_is_not_learned(processor: Any) -> None:
    encoder = encoder_of(with_template(processor, LLAVA_TEMPLATE))
    encoded = encoder.encode(row("red"), (PICTURE,))
    assert trained_text(encoder, encoded.labels).lstrip() == "red<|im_end|>"
    assert encoder.tokenizer.decode(encoded.input_ids).endswith("ASSISTANT: red<|im_end|>")


def test_no_answer_of_a_longer_conversation_ends_with_a_space(processor: Any) -> None:
    encoder = encoder_of(with_template(processor, LLAVA_TEMPLATE))
    turns = (*row("red").conversations, Turn("human", "And the shape?"), Turn("gpt", "a circle"))
    encoded = encoder.encode(Row(id="r", image="i.png", conversations=turns), (PICTURE,))
    between = encoder.tokenizer.bos_token_id
    spans = encoder.tokenizer.decode(encoded.labels.masked_fill(encoded.labels == NOT_TRAINED, between))
    assert [text.lstrip() for text in spans.split("<|endoftext|>") if text] == ["red", "a circle<|im_end|>"]


def test_words_of_a_dataset_never_become_control_tokens(encoder: RowEncoder) -> None:
    encoded = encoder.encode(row("a <image> <|im_end|> sign", "Is <|im_start|>this red?"), (PICTURE,))
    assert int((encoded.input_ids == encoder.processor.image_token_id).sum()) == demo_model.IMAGE_TOKENS
    assert int((encoded.labels == encoder.tokenizer.eos_token_id).sum()) == 1


def test_a_long_answer_is_cut_but_the_picture_stays_whole(processor: Any) -> None:
    encoder = encoder_of(processor, max_length=128)
    encoded = encoder.encode(row("very long " * 100), (PICTURE,))
    assert len(encoded.input_ids) == 128
    assert int((encoded.input_ids == encoder.processor.image_token_id).sum()) == demo_model.IMAGE_TOKENS
    assert (encoded.labels != NOT_TRAINED).any()


def test_a_row_with_nothing_left_to_learn_is_refused_with_its_id(processor: Any) -> None:
    with pytest.raises(DatasetInvalid, match=r"row-0.*max_length"):
        encoder_of(processor, max_length=128).encode(row(question="why " * 200), (PICTURE,))


def test_a_row_without_an_answer_is_refused(encoder: RowEncoder) -> None:
    unanswered = Row(id="row-9", image="i.png", conversations=(Turn("human", "<image>\nWhat?"),))
    with pytest.raises(DatasetInvalid, match="row-9"):
        encoder.encode(unanswered, (PICTURE,))


def test_a_template_that_drops_the_picture_is_refused(processor: Any) -> None:
    blind = demo_model.CHAT_TEMPLATE.replace("<image>", "")
    with pytest.raises(ModelUnavailable, match="row-0"):
        encoder_of(with_template(processor, blind)).encode(row(), (PICTURE,))


_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
_MARKED = "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
_ANSWER = (
    "{% if m['role'] == 'assistant' %}{{ WRITES }}" + _MARKED + "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
)
_ASK = "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ASKS }}{% endif %}"


@pytest.mark.parametrize(
    ("asks", "writes"),
    [
        pytest.param("", "<think>\n\n</think>\n\n", id="as Qwen3"),
        pytest.param("<think>\n", "", id="as DeepSeek's distilled models"),
        pytest.param("<think>\n", "<think>\n\n</think>\n\n", id="as Qwen3 Thinking"),
    ],
)
def test_answers_that_are_written_where_nobody_asks_for_them_are_refused(asks: str, writes: str) -> None:
    tokenizer = qwen()[1]
    tokenizer.chat_template = (_TURNS + _ANSWER + _ASK).replace("ASKS", repr(asks)).replace("WRITES", repr(writes))
    encoder = RowEncoder(tokenizer, 512, frozenset({tokenizer.eos_token_id}))
    row = Row(id="row-1", conversations=(Turn("human", "What colour?"), Turn("gpt", "red")))
    with pytest.raises(ModelUnavailable, match=r"Row 'row-1'.*asks for an answer with"):
        encoder.encode(row, ())


@pytest.mark.parametrize(("asks", "writes"), [("", ""), ("", " "), ("", "\n"), (" ", ""), ("\n", " ")])
def test_an_answer_stands_right_behind_what_asks_for_it_whatever_blanks_its_template_writes(
    asks: str, writes: str
) -> None:
    tokenizer = qwen()[1]
    tokenizer.chat_template = (_TURNS + _ANSWER + _ASK).replace("ASKS", repr(asks)).replace("WRITES", repr(writes))
    encoder = RowEncoder(tokenizer, 512, frozenset({tokenizer.eos_token_id}))
    row = Row(id="row-1", conversations=(Turn("human", "What colour?"), Turn("gpt", "red")))
    encoded, prompt = encoder.encode(row, ()), encoder.encode_prompt(row, ()).input_ids
    assert torch.equal(encoded.input_ids[: len(prompt)], prompt)
    assert tokenizer.decode(encoded.labels[len(prompt) :]).strip() == "red<|im_end|>"
    assert bool((encoded.labels[: len(prompt)] == NOT_TRAINED).all())


def test_the_prompt_ends_where_the_answer_begins(encoder: RowEncoder) -> None:
    prompt, whole = encoder.encode_prompt(row(), (PICTURE,)), encoder.encode(row(), (PICTURE,))
    first = int((whole.labels != NOT_TRAINED).nonzero()[0])
    assert torch.equal(prompt.input_ids, whole.input_ids[:first])


def test_padding_is_neither_seen_nor_trained(encoder: RowEncoder) -> None:
    short, long = encoder.encode(row("red"), (PICTURE,)), encoder.encode(row("a rather long answer"), (PICTURE,))
    batch = collate([short, long], encoder.tokenizer.pad_token_id)
    padding = len(long.input_ids) - len(short.input_ids)
    assert batch["attention_mask"][0].tolist() == [1] * len(short.input_ids) + [0] * padding
    assert (batch["labels"][0, -padding:] == NOT_TRAINED).all()
    assert batch["pixel_values"].shape[0] == 2


def test_prompts_are_padded_on_the_left(encoder: RowEncoder) -> None:
    prompts = [
        encoder.encode_prompt(row(question=text), (PICTURE,)) for text in ("What?", "What colour is the object?")
    ]
    batch = collate(prompts, encoder.tokenizer.pad_token_id, left=True)
    assert batch["attention_mask"][0, 0] == 0
    assert (batch["attention_mask"][:, -1] == 1).all()


def test_the_text_length_without_opening_the_picture_is_the_real_one(encoder: RowEncoder) -> None:
    estimated = encoder.text_tokens(row()) - 1 + encoder.image_tokens(PICTURE)
    after_the_end = 1  # the template's last newline, which training cuts off
    assert estimated == len(encoder.encode(row(), (PICTURE,)).input_ids) + after_the_end


def test_rows_without_pictures_are_encoded_too(encoder: RowEncoder) -> None:
    encoded = encoder.encode(row(image=None), ())
    assert encoded.pictures == {}
    assert trained_text(encoder, encoded.labels) == "red<|im_end|>"


def test_processor_survives_saving(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = encoder_of(models.load_processor(tmp_path, sees_images=True))
    assert torch.equal(
        again.encode(row(), (PICTURE,)).input_ids, encoder_of(processor).encode(row(), (PICTURE,)).input_ids
    )
