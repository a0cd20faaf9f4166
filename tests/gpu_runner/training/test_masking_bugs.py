"""Bugs that train silently, each planted on purpose: none reaches a model."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image
from torch import Tensor

from gpu_runner.rows import Row, Turn
from gpu_runner.training import models
from gpu_runner.training.encoding import NOT_TRAINED, RowEncoder, collate
from gpu_runner.training.loss import summed_loss
from gpu_runner.training.models import Loaded
from jobs.errors import DatasetInvalid, ModelUnavailable

PICTURE = Image.effect_noise((60, 50), 60).convert("RGB")
ANSWERED = Row(id="row-3", image="0.png", conversations=(Turn("human", "<image>\nWhat is it?"), Turn("gpt", "red")))

Mask = Callable[[RowEncoder, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tiny_models.build("llava", tmp_path_factory.mktemp("models") / "llava")
    return models.load_base(models.folder_source(folder, "llava"), device="cpu", dtype=torch.float32, offline=True)


def plant(monkeypatch: pytest.MonkeyPatch, bug: Mask) -> None:
    """Change which tokens are taken for the answer; `bug` gets the right mask and the ids."""
    real = RowEncoder._answer_mask

    def wrong(self: RowEncoder, row: Row, messages: Any, ids: Tensor) -> Tensor:
        return bug(self, real(self, row, messages, ids), ids)

    monkeypatch.setattr(RowEncoder, "_answer_mask", wrong)


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(lambda _encoder, mask, ids: ids >= 0, id="everything is trained"),
        pytest.param(lambda encoder, mask, ids: ~encoder.is_placeholder(ids), id="the prompt is trained"),
        pytest.param(lambda encoder, mask, ids: mask | encoder.is_placeholder(ids), id="image tokens are trained"),
        pytest.param(lambda _encoder, mask, ids: mask.roll(-1), id="the answer is shifted"),
        pytest.param(lambda _encoder, mask, ids: mask & (ids < 0), id="nothing is trained"),
    ],
)
def test_a_wrong_mask_is_refused_with_the_row(bug: Mask, llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    llava.encoder(256).encode(ANSWERED, (PICTURE,))
    plant(monkeypatch, bug)
    with pytest.raises(ModelUnavailable, match="row-3"):
        llava.encoder(256).encode(ANSWERED, (PICTURE,))


def test_an_end_that_is_masked_is_refused(llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RowEncoder._with_end

    def without(self: RowEncoder, rendered: dict[str, Tensor], trained: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rendered, trained = real(self, rendered, trained)
        trained[-1] = False
        return rendered, trained

    monkeypatch.setattr(RowEncoder, "_with_end", without)
    with pytest.raises(ModelUnavailable, match=r"row-3.*end token"):
        llava.encoder(256).encode(ANSWERED, (PICTURE,))


def test_an_end_that_is_not_the_models_is_refused(llava: Loaded) -> None:
    foreign = RowEncoder(llava.processor, 256, frozenset({llava.tokenizer.pad_token_id}))
    with pytest.raises(ModelUnavailable, match=r"row-3.*end token"):
        foreign.encode(ANSWERED, (PICTURE,))


@pytest.mark.parametrize("marks", [0, 1, 3])
def test_a_row_that_marks_more_or_fewer_pictures_than_it_has_is_refused(marks: int, llava: Loaded) -> None:
    names = ("0.png", "1.png") if marks else ()
    question = "<image>\n" * (marks or 1) + "What is it?"
    row = Row(id="row-5", images=names, conversations=(Turn("human", question), Turn("gpt", "red")))
    with pytest.raises(DatasetInvalid, match="row-5"):
        llava.encoder(256).encode(row, (PICTURE,) * len(names))


def test_a_row_whose_picture_was_lost_on_the_way_is_refused(llava: Loaded) -> None:
    with pytest.raises(DatasetInvalid, match="row-3"):
        llava.encoder(256).encode(ANSWERED, ())


def test_a_processor_that_forgets_a_picture_is_refused(llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Row(
        id="row-6", images=("0.png", "1.png"), conversations=(Turn("human", "What are they?"), Turn("gpt", "red"))
    )
    real = tiny_models.LLAVA_TEMPLATE
    blind = real.replace("{{ '<image>\n' }}", "{% if loop.first and loop.length == 1 %}{{ '<image>\n' }}{% endif %}")
    monkeypatch.setattr(llava.processor, "chat_template", blind)
    with pytest.raises(ModelUnavailable, match="row-6"):
        llava.encoder(256).encode(two, (PICTURE, PICTURE))


def test_features_that_go_nowhere_are_refused_by_the_model(llava: Loaded) -> None:
    batch = collate([llava.encoder(256).encode(ANSWERED, (PICTURE,))], llava.tokenizer.pad_token_id)
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="do not match"), torch.no_grad():
        summed_loss(llava, batch)


def test_a_cut_through_a_picture_is_not_made(llava: Loaded) -> None:
    turns = (*ANSWERED.conversations, Turn("human", "<image>\nAnd this?"), Turn("gpt", "green"))
    two = Row(id="row-8", images=("0.png", "1.png"), conversations=turns)
    whole = llava.encoder(256).encode(two, (PICTURE, PICTURE))
    second = int(llava.encoder(256).is_placeholder(whole.input_ids).nonzero()[-1])
    cut = llava.encoder(second - 5).encode(two, (PICTURE, PICTURE))
    assert cut.is_truncated
    assert cut.images == len(cut.pictures["pixel_values"]) == 1
    assert cut.image_tokens == whole.image_tokens // 2
    assert llava.tokenizer.decode(cut.labels[cut.labels != NOT_TRAINED]).strip() == "red<|im_end|>"


@pytest.mark.parametrize("family", ["llama", "gemma3", "llava"])
def test_a_bos_that_is_written_twice_is_read_once(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, processor = tiny_models.FAMILIES[family]()
    tokenizer = getattr(processor, "tokenizer", processor)
    processor.chat_template = "{{ bos_token }}{{ bos_token }}" + processor.chat_template.removeprefix("{{ bos_token }}")
    encoder = RowEncoder(processor, 256, frozenset({tokenizer.eos_token_id}))
    encoded = encoder.encode(Row(id="r", conversations=(Turn("human", "Hello"), Turn("gpt", "there"))), ())
    assert int((encoded.input_ids == tokenizer.bos_token_id).sum()) == 1
    assert len(encoded.labels) == len(encoded.input_ids)
    assert tokenizer.decode(encoded.labels[encoded.labels != NOT_TRAINED], skip_special_tokens=True).strip() == "there"
