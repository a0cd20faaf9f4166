"""Models come from one door, whole and without foreign code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from gpu_runner.training import adapters, demo_model, models, trainable
from gpu_runner.training.device import Compute
from gpu_runner.training.loss import summed_loss
from jobs.errors import ModelUnavailable, NoCapacity
from jobs.models import ModelSource, Origin
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import EvaluateSpec
from jobs.training_config import TrainingConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model.ensure(tmp_path_factory.mktemp("models") / "demo-llava")


@pytest.fixture
def copy(demo_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder, tmp_path / "copy"))


def source(folder: Path) -> ModelSource:
    return ModelSource(name="mine", origin=Origin.FOLDER, location=str(folder), parameters=1)


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(model_name="mine", train_data_path="x", lora_dropout=0.0, **changes)


def some_tokens() -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 500, (2, 24), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_the_demo_model_is_built_at_first_use(root: DataRoot) -> None:
    settings = Settings(data_root=str(root.folder))
    loaded = models.load_base(models.source_of("demo-llava", root, settings), device="cpu", dtype=torch.float32)
    assert (root.models / "demo-llava" / "model.safetensors").is_file()
    assert sum(adapters.parameters_by_part(loaded.model).values()) == loaded.model.num_parameters()
    assert loaded.end_ids == {loaded.tokenizer.eos_token_id}


def test_code_from_a_model_folder_is_refused_wherever_it_hides(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra": [{"auto_map": {"AutoTokenizer": "evil.T"}}]}))
    with pytest.raises(ModelUnavailable, match="auto_map"):
        models.load_base(source(copy), device="cpu", dtype=torch.float32)


def test_pickled_weights_are_refused_and_not_opened(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        models.load_base(source(copy), device="cpu", dtype=torch.float32)
    assert not canary.exists()


def test_truncated_weights_are_an_understandable_failure(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match="mine cannot be loaded"):
        models.load_base(source(copy), device="cpu", dtype=torch.float32)


def test_a_lost_projector_is_noticed(copy: Path, demo_folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(demo_folder)
    kept = {name: value for name, value in model.state_dict().items() if "projector" not in name}
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, state_dict=kept)
    with pytest.raises(ModelUnavailable, match="projector"):
        models.load_base(source(copy), device="cpu", dtype=torch.float32)


def test_a_model_the_hub_cannot_give_says_what_to_do(root: DataRoot) -> None:
    away = models.source_of("somebody/some-model", root, Settings(data_root=str(root.folder)))
    with pytest.raises(ModelUnavailable, match="copy the model's folder"):
        models.load_base(away, device="cpu", dtype=torch.float32, offline=True)


def test_a_large_model_is_not_run_on_a_cpu_nobody_asked_for() -> None:
    large = ModelSource(name="llava-7b", origin=Origin.HUB, location="x/y", parameters=7_000_000_000)
    with pytest.raises(NoCapacity, match="no GPU"):
        models.check_capacity(large, "cpu", "auto")
    models.check_capacity(large, "cpu", "cpu")
    models.check_capacity(large, "cuda:0", "auto")


def test_an_unknown_size_is_counted_without_loading(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = ModelSource(name="mine", origin=Origin.FOLDER, location=str(demo_folder))
    models.check_capacity(unknown, "cpu", "auto")
    monkeypatch.setattr("jobs.models.CPU_LIMIT_PARAMETERS", 1_000_000)
    with pytest.raises(NoCapacity):
        models.check_capacity(unknown, "cpu", "auto")


def test_adapters_touch_the_language_model_only(demo_folder: Path) -> None:
    loaded = trainable.load(source(demo_folder), config(), Compute(CPU, torch.float32), None, offline=True)
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 3  # A and B of seven linears in three layers
    assert all("lora_" in name and "language_model" in name for name in trained)
    assert not loaded.model.base_model.model.model.vision_tower.training


def test_a_model_without_the_layers_lora_knows_is_refused_with_a_sentence() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64))
    with pytest.raises(ModelUnavailable, match="use_lora=false"):
        adapters.attach(model, config())


def test_full_training_trains_every_part(demo_folder: Path) -> None:
    full = config(use_lora=False)
    loaded = trainable.load(source(demo_folder), full, Compute(CPU, torch.float32), None, offline=True)
    assert adapters.parameters_by_part(loaded.model, trainable_only=True) == adapters.parameters_by_part(loaded.model)
    assert loaded.model.model.vision_tower.training


@pytest.mark.parametrize("bits", [4, 8])
def test_few_bits_reach_the_language_model_and_nothing_else(demo_folder: Path, bits: Literal[4, 8]) -> None:
    loaded = models.load_base(source(demo_folder), device="cpu", dtype=torch.bfloat16, bits=bits)
    layers = adapters.quantised_layers(loaded.model, bits)
    assert len(layers) == 7 * 3
    assert all("language_model" in name for name in layers)
    assert loaded.model.lm_head.weight.dtype is torch.bfloat16
    plain = models.load_base(source(demo_folder), device="cpu", dtype=torch.bfloat16)
    assert adapters.parameters_by_part(loaded.model) == adapters.parameters_by_part(plain.model)


def test_four_bit_beyond_the_language_model_is_noticed(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_outside_language", lambda _skeleton: ["vision_tower"])  # a bare name is ignored
    with pytest.raises(ModelUnavailable, match="4-bit loading reached"):
        models.load_base(source(demo_folder), device="cpu", dtype=torch.bfloat16, bits=4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_gradients_of_training_on_few_bits_survive_an_evaluation(
    demo_folder: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "_check_bits", lambda *_: None)  # a CPU computes with 8 as well, slowly
    qlora = config(use_qlora=True, qlora_bits=bits)
    loaded = trainable.load(source(demo_folder), qlora, Compute(CPU, torch.bfloat16), None, offline=True)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)

    def gradients() -> dict[str, torch.Tensor]:
        loaded.model.zero_grad()
        summed_loss(loaded, some_tokens())[0].backward()
        return {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}

    before = gradients()
    assert all(bool(gradient.any()) for gradient in before.values())
    loaded.model.eval()
    with torch.no_grad():
        summed_loss(loaded, some_tokens())
    trainable.train_mode(loaded)
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_recomputing_activations_gives_the_same_gradients(demo_folder: Path) -> None:
    loaded = trainable.load(source(demo_folder), config(), Compute(CPU, torch.float32), None, offline=True)

    def gradients() -> list[torch.Tensor]:
        loaded.model.zero_grad()
        summed_loss(loaded, some_tokens())[0].backward()
        return [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]

    kept = gradients()
    trainable.recompute_activations(loaded)
    recomputed = gradients()
    assert len(kept) == len(recomputed) == 2 * 7 * 3
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(kept, recomputed, strict=True))


def test_recomputing_activations_leaves_what_is_frozen_out_of_the_graph(demo_folder: Path) -> None:
    loaded = trainable.load(source(demo_folder), config(), Compute(CPU, torch.float32), None, offline=True)
    trainable.recompute_activations(loaded)
    vlm = loaded.model.base_model.model.model
    seen: dict[str, bool] = {}
    for name in ("vision_tower", "multi_modal_projector"):

        def note(_module: Any, _inputs: Any, out: Any, name: str = name) -> None:
            seen[name] = getattr(out, "last_hidden_state", out).requires_grad

        vlm.get_submodule(name).register_forward_hook(note)
    ids = torch.full((1, 80), 20)
    ids[0, :64] = loaded.processor.image_token_id
    loaded.model(input_ids=ids, pixel_values=torch.zeros(1, 3, 64, 64))
    assert seen == {"vision_tower": False, "multi_modal_projector": False}


def test_adapters_are_loaded_onto_the_jobs_own_device(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trainable.load(source(demo_folder), config(), Compute(CPU, torch.float32), None, offline=True)
    loaded.model.save_pretrained(tmp_path, save_embedding_layers=False)
    base = models.load_base(source(demo_folder), device="cpu", dtype=torch.float32)
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "meta")  # as peft finds the first GPU
    adapted = adapters.load(base.model, tmp_path, base.compute.device)
    assert {parameter.device.type for parameter in adapted.parameters()} == {"cpu"}


def test_a_model_for_a_gpu_is_loaded_straight_onto_it(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def load(_source: Any, _config: Any, **options: Any) -> None:
        raise Asked(options["device_map"])

    monkeypatch.setattr(models, "_load_weights", load)
    with pytest.raises(Asked, match="cuda:1"):
        models.load_base(source(demo_folder), device="cuda:1", dtype=torch.float16)


@pytest.mark.parametrize(("limit", "device_name", "rows"), [(1, "cuda:0", 1), (1, "cpu", 8), (10**9, "cuda:0", 8)])
def test_a_large_model_on_a_gpu_answers_one_row_at_a_time(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int, device_name: str, rows: int
) -> None:
    monkeypatch.setattr("jobs.models.CPU_LIMIT_PARAMETERS", limit)
    loaded = models.load_base(source(demo_folder), device="cpu", dtype=torch.float32)
    assert replace(loaded, compute=Compute(torch.device(device_name), torch.float16)).batch_rows(8) == rows


def test_a_text_model_loads_with_its_tokeniser(text_model: Path) -> None:
    loaded = models.load_base(source(text_model), device="cpu", dtype=torch.float32)
    assert not loaded.encoder(128).sees_images
    assert loaded.tokenizer is loaded.processor


def test_a_job_without_a_checkpoint_cannot_be_loaded(root: DataRoot) -> None:
    with pytest.raises(ModelUnavailable, match="no complete checkpoint"):
        models.load_named(
            EvaluateSpec(data_path="x", job_id="nobody"), root, Settings(data_root=str(root.folder)), "cpu"
        )
