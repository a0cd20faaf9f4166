"""Every family of models sees its pictures, learns the answers alone, and does so in any company of a batch."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image
from tiny_models import FAMILIES, SEEING, TEXT_ONLY
from torch import Tensor
from torch.nn import functional

from gpu_runner.rows import Row, Turn
from gpu_runner.training import adapters, generation, models
from gpu_runner.training.encoding import NOT_TRAINED, Encoded, RowEncoder, collate
from gpu_runner.training.loss import summed_loss
from gpu_runner.training.models import Loaded
from jobs.errors import DatasetInvalid, ModelUnavailable
from jobs.training_config import TrainingConfig

WIDE = Image.effect_noise((90, 70), 90).convert("RGB")
TALL = Image.effect_noise((40, 80), 50).convert("RGB")
LONGEST = 512
LOOK_FIRST = ("paligemma",)  # its pictures stand before all text
NO_TURN_ENDS = ("llava", "llava_next", "paligemma")  # their templates write nothing behind an answer

MARKED_TEMPLATE = (  # marks what the assistant says, its end too
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ part['text'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LoadedOf = Callable[[str], Loaded]


@pytest.fixture(scope="module")
def loaded_of(tmp_path_factory: pytest.TempPathFactory) -> LoadedOf:
    """A family's tiny model, loaded as any other; no test may change it."""
    kept: dict[str, Loaded] = {}

    def load(family: str) -> Loaded:
        if family not in kept:
            kept[family] = fresh(family, tmp_path_factory.mktemp("models"))
        return kept[family]

    return load


def fresh(family: str, folder: Path) -> Loaded:
    source = models.folder_source(tiny_models.build(family, folder / family), family)
    return models.load_base(source, device="cpu", dtype=torch.float32, offline=True)


def row(answer: str, *, pictures: int = 0, question: str = "What colour is it?", row_id: str = "row-0") -> Row:
    names = tuple(f"images/{number}.png" for number in range(pictures))
    turns = (Turn("human", "<image>\n" * pictures + question), Turn("gpt", answer))
    return Row(id=row_id, images=names, conversations=turns)


def mixed(family: str) -> list[tuple[Row, tuple[Image.Image, ...]]]:
    """Rows of all kinds: pictures of two shapes, two of them in one row, none at all."""
    texts = [(row("there you are", question="Hello"), ()), (row("yes", question="Is it a long question?"), ())]
    if family in TEXT_ONLY:
        return texts
    return [
        (row("red", pictures=1), (WIDE,)),
        (row("blue green", pictures=2), (TALL, WIDE)),
        *texts,
        (row("a tall one", pictures=1), (TALL,)),
    ]


def trained_text(encoder: RowEncoder, encoded: Encoded) -> str:
    return str(encoder.tokenizer.decode(encoded.labels[encoded.labels != NOT_TRAINED], skip_special_tokens=True))


def placeholders(loaded: Loaded, ids: Tensor) -> int:
    return int((ids == models.image_token_id(loaded.model.config)).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_and_its_end_are_trained_and_nothing_else(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    encoder = loaded.encoder(LONGEST)
    for each, images in mixed(family):
        encoded = encoder.encode(each, images)
        assert trained_text(encoder, encoded).strip() == each.conversations[-1].value
        assert int(encoded.labels[-1]) in loaded.end_ids
        first = int((encoded.labels != NOT_TRAINED).nonzero()[0])
        assert torch.equal(encoder.encode_prompt(each, images).input_ids, encoded.input_ids[:first])


@pytest.mark.parametrize(
    ("family", "place"),
    [*((name, 0) for name in FAMILIES), *((name, 1) for name in SEEING if name not in LOOK_FIRST)],
)
def test_each_answer_of_a_conversation_is_trained(family: str, place: int, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    encoder = loaded.encoder(LONGEST)
    pictures = (WIDE,) if family in SEEING else ()
    asks = ["What colour?", "And now?"]
    asks[place] = "<image>" * len(pictures) + "\n" + asks[place] if pictures else asks[place]
    turns = (Turn("human", asks[0]), Turn("gpt", "red"), Turn("human", asks[1]), Turn("gpt", "a circle"))
    names = ("images/0.png",) * len(pictures)
    both = Row(id="row-0", images=names, conversations=turns)
    encoded, asked = encoder.encode(both, pictures), encoder.encode_prompt(both, pictures).input_ids
    assert trained_text(encoder, encoded).replace(" ", "") == "redacircle"
    assert torch.equal(encoded.input_ids[: len(asked)], asked)
    assert encoded.labels[len(asked)] != NOT_TRAINED
    assert sum(int(token) in loaded.end_ids for token in encoded.labels) >= (1 if family in NO_TURN_ENDS else 2)


def test_no_mark_of_a_picture_behind_an_answer_is_trained(loaded_of: LoadedOf) -> None:
    """Read from the end, the text of such a row lies beside its tokens; special ones are no words to notice it by."""
    processor = copy.copy(loaded_of("gemma3").processor)
    processor.chat_template = MARKED_TEMPLATE
    encoder = RowEncoder(processor, LONGEST, frozenset({processor.tokenizer.eos_token_id}))
    said = ("What?<image>", "a", "b <image> c", "d", "e?", "f")
    turns = tuple(Turn("gpt" if at % 2 else "human", text) for at, text in enumerate(said))
    encoded = encoder.encode(Row(id="row-0", images=("0.png", "1.png"), conversations=turns), (TALL, WIDE))
    trained = encoded.labels[encoded.labels != NOT_TRAINED]
    assert encoder.tokenizer.decode(trained) == "a<|im_end|>d<|im_end|>f<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_one_bos_or_none(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    for each, images in mixed(family):
        ids = loaded.encoder(LONGEST).encode(each, images).input_ids
        assert int((ids == loaded.tokenizer.bos_token_id).sum()) <= 1


@pytest.mark.parametrize("family", SEEING)
def test_a_batch_has_as_many_placeholders_as_the_model_makes_features(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    encoder = loaded.encoder(LONGEST)
    rows = [encoder.encode(*each) for each in mixed(family)]
    batch = collate(rows, loaded.tokenizer.pad_token_id)
    seen = {name: value for name, value in batch.items() if any(name in each.pictures for each in rows)}
    with torch.no_grad():
        features = loaded.model.get_image_features(**seen, return_dict=True).pooler_output
    found = sum(part[..., 0].numel() for part in features)
    assert placeholders(loaded, batch["input_ids"]) == sum(each.image_tokens for each in rows) == found > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_costs_the_same_in_any_company(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    encoder, pad = loaded.encoder(LONGEST), loaded.tokenizer.pad_token_id
    rows = [encoder.encode(*each) for each in mixed(family)]
    with torch.no_grad():
        alone = sum(summed_loss(loaded, collate([each], pad))[0].item() for each in rows)
        together, count = summed_loss(loaded, collate(rows, pad))
    assert together.item() == pytest.approx(alone, rel=1e-5)
    assert count == sum(int((each.labels != NOT_TRAINED).sum()) for each in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_trained_tokens_alone_give_the_model_its_own_loss(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    encoder = loaded.encoder(LONGEST)
    batch = collate([encoder.encode(*each) for each in mixed(family)], loaded.tokenizer.pad_token_id)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = loaded.model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
        whole = functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
        loss, _ = summed_loss(loaded, batch)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_asked_alone_and_in_a_batch_gets_the_same_answer(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    encoder, pad = loaded.encoder(LONGEST), loaded.tokenizer.pad_token_id
    prompts = [encoder.encode_prompt(*each) for each in mixed(family)]
    alone = [generation._continued(loaded, collate([each], pad, left=True), 2)[0] for each in prompts]
    assert generation._continued(loaded, collate(prompts, pad, left=True), 2) == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_not_seen_before_it_is_predicted(family: str, loaded_of: LoadedOf) -> None:
    """Another end of the answer changes nothing in what is predicted for its beginning."""
    loaded = loaded_of(family)
    encoder = loaded.encoder(LONGEST)
    pictures = (WIDE,) if family in SEEING else ()
    rows = [encoder.encode(row(answer, pictures=len(pictures)), pictures) for answer in ("red one", "red green")]
    first = int((rows[0].labels != NOT_TRAINED).nonzero()[0])
    logits = []
    for each in rows:
        batch = collate([each], loaded.tokenizer.pad_token_id)
        batch.pop("labels")
        with torch.no_grad():
            logits.append(loaded.model(**batch).logits[0, : first + 1])
    assert torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_length_is_known_without_opening_a_picture(family: str, loaded_of: LoadedOf) -> None:
    encoder = loaded_of(family).encoder(LONGEST)
    for each, images in mixed(family):
        pictures = [encoder.image_length(image.size, among=len(images)) - 1 for image in images]
        known = encoder.text_tokens(each) + sum(pictures)
        assert abs(known - len(encoder.encode(each, images).input_ids)) <= 2


@pytest.mark.parametrize("family", SEEING)
def test_a_picture_is_scaled_to_the_cap_of_pixels(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    free, capped = loaded.encoder(LONGEST), loaded.encoder(LONGEST, max_pixels=30 * 30)
    each = row("red", pictures=1)
    assert len(capped.encode(each, (WIDE,)).input_ids) == len(free.encode(each, (WIDE.resize((34, 26)),)).input_ids)
    assert capped.image_tokens(WIDE) <= free.image_tokens(WIDE)


@pytest.mark.parametrize("family", sorted({*SEEING} - {"paligemma"}))  # it reads all pictures before any text
def test_no_cut_goes_through_a_picture(family: str, loaded_of: LoadedOf) -> None:
    loaded = loaded_of(family)
    turns = (*row("a long answer " * 8, pictures=1).conversations, Turn("human", "<image>\nAnd?"), Turn("gpt", "green"))
    both = Row(id="row-7", images=("0.png", "1.png"), conversations=turns)
    length = len(loaded.encoder(LONGEST).encode(both, (WIDE, TALL)).input_ids)
    alone = len(loaded.encoder(LONGEST).encode(row("a", pictures=1), (WIDE,)).input_ids)
    for limit in range(alone, length, (length - alone) // 5):
        encoder = loaded.encoder(limit)
        encoded = encoder.encode(both, (WIDE, TALL))
        assert len(encoded.input_ids) <= limit
        assert encoded.is_truncated
        assert placeholders(loaded, encoded.input_ids) == encoded.image_tokens
        left = (WIDE, TALL)[: encoded.images]
        assert encoded.image_tokens == sum(encoder.image_tokens(image, among=len(left)) for image in left)
        with torch.no_grad():
            assert summed_loss(loaded, collate([encoded], loaded.tokenizer.pad_token_id))[0].isfinite()


@pytest.mark.parametrize("family", SEEING)
def test_pictures_that_do_not_fit_are_refused_with_the_row(family: str, loaded_of: LoadedOf) -> None:
    with pytest.raises(DatasetInvalid, match=r"row-0.*max_length"):
        loaded_of(family).encoder(4).encode(row("red", pictures=2), (WIDE, TALL))


@pytest.mark.parametrize("family", TEXT_ONLY)
def test_a_model_that_reads_text_refuses_pictures(family: str, loaded_of: LoadedOf) -> None:
    with pytest.raises(ModelUnavailable, match="row-0"):
        loaded_of(family).encoder(LONGEST).encode(row("red", pictures=1), (WIDE,))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_touch_the_language_model_alone_and_the_rest_runs_without_gradients(
    family: str, tmp_path: Path
) -> None:
    loaded = fresh(family, tmp_path)
    model = adapters.attach(loaded.model, TrainingConfig(model_name="tiny", train_data_path="datasets/d"))
    layers, linears = 2, 7
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2 * layers * linears
    assert {adapters.part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "language"
    }
    if family in TEXT_ONLY:
        return
    encoded = loaded.encoder(LONGEST).encode(row("red", pictures=1), (WIDE,))
    assert all(not feature.requires_grad for feature in _features(model, encoded))
    for name, parameter in model.named_parameters():  # even then: what is frozen was decided when the adapters came
        parameter.requires_grad_("image_newline" not in name)  # LLaVA-NeXT's, which is no module's
    assert all(not feature.requires_grad for feature in _features(model, encoded))


def _features(model: Any, encoded: Encoded) -> tuple[Tensor, ...]:
    return tuple(model.get_image_features(**encoded.pictures, return_dict=True).pooler_output)
