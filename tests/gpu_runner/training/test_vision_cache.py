"""What eyes saw once and what they see each time train the same, in every family and however a run goes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_models
import torch
from msgspec.structs import replace
from PIL import Image
from runs import Build, Said, WorkFor, notes_of, series
from tiny_models import SEEING
from torch import Tensor
from transformers import LlavaModel

from gpu_runner.host_memory import HostMemory
from gpu_runner.recipes import finetune
from gpu_runner.rows import Row, Turn
from gpu_runner.training import adapters, models, room, trainable
from gpu_runner.training.device import Compute
from gpu_runner.training.encoding import Encoded, collate
from gpu_runner.training.loss import summed_loss
from gpu_runner.training.models import Loaded
from gpu_runner.training.vision_cache import VisionCache
from jobs import events
from jobs.errors import ModelUnavailable
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.specs import FinetuneSpec
from jobs.training_config import TrainingConfig

WIDE = Image.effect_noise((90, 70), 90).convert("RGB")
WIDE_TOO = Image.effect_noise((90, 70), 90).convert("RGB")
TALL = Image.effect_noise((40, 80), 50).convert("RGB")
CONFIG = TrainingConfig(model_name="m", train_data_path="d", lora_dropout=0.1)
CACHED = {"cache_vision_features": True, "val_data_path": None, "num_epochs": 3}
ROWS = 14  # of the datasets that `finetune_spec` writes

Company = tuple[Loaded, dict[int, Encoded]]


def row(answer: str, images: int) -> Row:
    turns = (Turn("human", "<image>\n" * images + "What is it?"), Turn("gpt", answer))
    return Row(id=answer, images=tuple(f"{n}.png" for n in range(images)), conversations=turns)


def company_of(family: str, folder: Path) -> Company:
    """One picture, another of the same size, two, none."""
    source = models.folder_source(tiny_models.build(family, folder / family), family)
    loaded = models.load_base(source, device="cpu", dtype=torch.float32, offline=True)
    encoder = loaded.encoder(512)
    pictures = ((WIDE,), (WIDE_TOO,), (TALL, WIDE), ())
    encoded = [encoder.encode(row(f"red {at}", len(images)), images) for at, images in enumerate(pictures)]
    return adapted(loaded), dict(enumerate(encoded))


def adapted(loaded: Loaded) -> Loaded:
    loaded = Loaded(adapters.attach(loaded.model, CONFIG), loaded.processor, loaded.source, loaded.compute)
    trainable.train_mode(loaded)
    return loaded


@pytest.fixture(scope="module", params=SEEING)
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Company:
    torch.set_num_threads(1)
    return company_of(str(request.param), tmp_path_factory.mktemp("models"))


def cost(loaded: Loaded, rows: list[Encoded], features: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients under the same dropout."""
    torch.manual_seed(1)
    loaded.model.zero_grad()
    batch = collate(rows, loaded.tokenizer.pad_token_id, has_pixels=features is None)
    loss, _ = summed_loss(loaded, batch, features)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def test_a_row_has_the_same_loss_and_gradients_bit_for_bit(company: Company) -> None:
    loaded, rows = company
    cache = VisionCache(loaded, limit_bytes=2**30)
    for index, each in rows.items():
        expected, expected_gradients = cost(loaded, [each])
        for _ in range(2):  # computed, kept
            found, gradients = cost(loaded, [each], cache.features({index: each}))
            assert torch.equal(found, expected)
            assert gradients.keys() == expected_gradients.keys()
            assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


def test_in_bf16_too(company: Company) -> None:
    whole, rows = company
    loaded = Loaded(whole.model, whole.processor, whole.source, Compute(torch.device("cpu"), torch.bfloat16))
    cache = VisionCache(loaded, limit_bytes=2**30)
    for _ in range(2):
        assert torch.equal(cost(loaded, [rows[2]], cache.features({2: rows[2]}))[0], cost(loaded, [rows[2]])[0])


def test_rows_together_cost_the_same(company: Company) -> None:
    """Up to rounding: the eyes see one row at a time here and all at once there, and matrix products of another size
    add in another order."""
    loaded, rows = company
    cache = VisionCache(loaded, limit_bytes=2**30)
    expected, expected_gradients = cost(loaded, list(rows.values()))
    for _ in range(2):
        found, gradients = cost(loaded, list(rows.values()), cache.features(rows))
        assert torch.allclose(found, expected, rtol=1e-6)
        assert all(torch.allclose(gradients[name], expected_gradients[name], atol=1e-5) for name in gradients)


def test_what_a_row_is_given_does_not_depend_on_its_company(company: Company) -> None:
    loaded, rows = company
    alone, together = VisionCache(loaded, limit_bytes=2**30), VisionCache(loaded, limit_bytes=0)
    for index in reversed(rows):
        alone.features({index: rows[index]})
    assert all(
        torch.equal(*pair)
        for pair in zip(tensors_of(alone.features(rows)), tensors_of(together.features(rows)), strict=True)
    )


def test_features_of_another_row_would_be_noticed(company: Company) -> None:
    loaded, rows = company
    cache = VisionCache(loaded, limit_bytes=2**30)
    cache.features(rows)
    swapped, _ = cost(loaded, [rows[0]], cache.features({1: rows[1]}))
    assert not torch.allclose(swapped, cost(loaded, [rows[0]])[0], rtol=1e-6)


def test_rows_in_another_order_would_be_noticed(company: Company) -> None:
    loaded, rows = company
    cache = VisionCache(loaded, limit_bytes=2**30)
    swapped, _ = cost(loaded, [rows[0], rows[1]], cache.features({1: rows[1], 0: rows[0]}))
    assert not torch.allclose(swapped, cost(loaded, [rows[0], rows[1]])[0], rtol=1e-6)


def test_what_is_kept_is_bounded_and_the_rest_is_the_same(company: Company) -> None:
    loaded, rows = company
    size = sum(tensor.nbytes for tensor in tensors_of(VisionCache(loaded, 0).features({0: rows[0]})))
    cache, endless = VisionCache(loaded, limit_bytes=size), VisionCache(loaded, limit_bytes=2**30)
    for _ in range(2):
        pairs = zip(tensors_of(cache.features(rows)), tensors_of(endless.features(rows)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert list(cache._kept) == [0]
    assert "saw in 1 rows is kept. For 2 more there was no room" in cache.told()
    assert "in 3 rows with pictures" in endless.told()


def test_features_in_an_unknown_form_are_refused(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = company
    real = loaded.model.get_image_features

    def with_more(**given: Any) -> Any:
        seen = real(**given)
        seen["crossings"] = seen.pooler_output
        return seen

    monkeypatch.setattr(loaded.model, "get_image_features", with_more)
    with pytest.raises(ModelUnavailable, match=r"crossings.*set cache_vision_features to false"):
        VisionCache(loaded, limit_bytes=2**30).features(rows)


def tensors_of(features: Any) -> Iterator[Tensor]:
    if isinstance(features, Tensor):
        yield features
    else:
        for value in features.values() if isinstance(features, dict) else features:
            yield from tensors_of(value)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the eyes were shown, look by look."""
    seen: list[int] = []
    real = LlavaModel.get_image_features

    def get_image_features(self: LlavaModel, pixel_values: Tensor, **given: Any) -> Any:
        seen.append(len(pixel_values))
        return real(self, pixel_values, **given)

    monkeypatch.setattr(LlavaModel, "get_image_features", get_image_features)
    return seen


def test_each_row_is_looked_at_once_in_three_epochs(
    finetune_spec: Build, work_for: WorkFor, said: Said, looks: list[int]
) -> None:
    spec = finetune_spec(**CACHED)
    work = work_for(spec)
    finetune.run(work)
    assert looks == [1] * ROWS
    assert notes_of(said, work, "vision_cache") == [
        "What the eyes saw in 14 rows with pictures is kept, in 0 MB of the host's memory."
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        {"dataloader_workers": 0},
        pytest.param({"use_qlora": True}, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_single_rows_logs_the_same_bit_for_bit(
    changes: dict[str, Any], finetune_spec: Build, work_for: WorkFor, said: Said, looks: list[int]
) -> None:
    """Evaluations, which look for themselves, too."""
    kinds = {"batch_size": 1, "gradient_accumulation_steps": 4, "logging_steps": 1} | changes
    plain = work_for(finetune_spec(**kinds), job_id="plain")
    finetune.run(plain)
    without = len(looks)
    data = {name: getattr(plain.spec.config, name) for name in ("train_data_path", "val_data_path")}
    cached = work_for(finetune_spec(**kinds, **data, cache_vision_features=True), job_id="cached")
    finetune.run(cached)
    assert series(said(cached, events.MetricsLogged)) == series(said(plain, events.MetricsLogged))
    assert 2 * without - len(looks) == ROWS  # of two epochs, the second


def test_a_run_killed_with_its_cache_logs_what_an_uninterrupted_one_would(
    finetune_spec: Build, work_for: WorkFor, said: Said, die_before: Callable[[int], type[BaseException]]
) -> None:
    spec = finetune_spec(cache_vision_features=True)
    whole = work_for(spec, job_id="whole")
    finetune.run(whole)
    attempts = [work_for(spec, job_id="killed", attempt=number) for number in (1, 2, 3)]
    for work, step in zip(attempts, (5, 7), strict=False):
        with pytest.raises(die_before(step)):
            finetune.run(work)
    finetune.run(attempts[-1])
    logged = [event for work in attempts for event in said(work, events.MetricsLogged)]
    assert series(logged) == series(said(whole, events.MetricsLogged))


def test_what_did_not_fit_is_said_and_costs_only_time(
    finetune_spec: Build, work_for: WorkFor, said: Said, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = finetune_spec(**CACHED)
    enough, short = work_for(spec, job_id="enough"), work_for(spec, job_id="short")
    finetune.run(enough)
    looks.clear()
    monkeypatch.setattr(room, "bytes_for_features", lambda *_: 0)
    finetune.run(short)
    assert looks == [1] * ROWS * 3
    assert series(said(short, events.MetricsLogged)) == series(said(enough, events.MetricsLogged))
    notes = notes_of(said, short, "vision_cache")
    assert len(notes) == 1
    assert "For 14 more there was no room" in notes[0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"num_epochs": 1}, "sees no row twice"), ({"max_steps": 4}, "sees no row twice"), ({}, "reads text only")],
    ids=["one epoch", "few steps", "text"],
)
def test_where_it_has_no_effect_the_run_says_so(
    changes: dict[str, Any],
    why: str,
    finetune_spec: Build,
    work_for: WorkFor,
    said: Said,
    text_model: Path,
    root: DataRoot,
    looks: list[int],
) -> None:
    spec = finetune_spec(**(CACHED | changes))
    if not changes:
        spec = text_spec(spec, text_model, root)
    work = work_for(spec)
    finetune.run(work)
    (note,) = notes_of(said, work, "vision_cache")
    assert note.startswith("cache_vision_features has no effect")
    assert why in note
    assert 1 not in looks


def text_spec(spec: FinetuneSpec, text_model: Path, root: DataRoot) -> FinetuneSpec:
    """The same training of a model that reads text, its rows without their pictures."""
    shutil.move(text_model, root.models / "text")
    file = root.path_of(spec.config.train_data_path) / LLAVA_FILE
    rows = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
    file.write_bytes(b"".join(msgspec.json.encode(without_picture(each)) + b"\n" for each in rows))
    return FinetuneSpec(config=replace(spec.config, model_name="models/text"))


def without_picture(given: dict[str, Any]) -> dict[str, Any]:
    turns = [turn | {"value": turn["value"].replace("<image>\n", "")} for turn in given["conversations"]]
    return {name: value for name, value in given.items() if name != "image"} | {"conversations": turns}


def test_rows_without_pictures_leave_nothing_to_keep(
    finetune_spec: Build, work_for: WorkFor, said: Said, root: DataRoot, text_model: Path
) -> None:
    spec = text_spec(finetune_spec(**CACHED), text_model, root)
    work = work_for(FinetuneSpec(config=replace(spec.config, model_name="demo-llava")))
    finetune.run(work)
    assert notes_of(said, work, "vision_cache") == ["cache_vision_features has no effect: no row has a picture."]


@pytest.mark.parametrize(
    ("device", "available", "processes", "expected"),
    [
        ("cuda:1", 8 * 2**30, 1, 2 * 2**30),
        ("cuda:0", 8 * 2**30, 4, 2**29),
        ("cuda:0", 2**40, 1, 16 * 2**30),
        ("cuda:0", None, 2, 2**29),
        ("cpu", 2**40, 2, 2**29),  # as much as is reserved for it
        ("cpu", 2**31, 1, 2**29),
    ],
)
def test_most_of_the_memory_is_left_to_others(
    device: str, available: int | None, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_runner.host_memory.read", lambda: HostMemory(None, available))
    assert room.bytes_for_features(torch.device(device), processes) == expected
