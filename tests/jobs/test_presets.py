"""The presets are settings a training takes, and the ones the product promises."""

import msgspec
import pytest

from jobs import footprint, model_shapes, presets
from jobs.presets import PRESETS, Preset
from jobs.training_config import TrainingConfig

PROMISED = {  # method, learning rate, batch × accumulation, epochs, warm-up, rank/alpha, max length, bf16, decay
    "quick_test": ("lora", 1e-4, 2, 2, 1, 0.1, 8, 16, 512, True, 0.0),
    "development": ("lora", 2e-5, 4, 4, 3, 0.03, 32, 64, 1024, True, 0.0),
    "production": ("lora", 2e-5, 4, 8, 5, 0.03, 64, 128, 2048, True, 0.01),
    "memory_efficient": ("lora", 2e-5, 1, 16, 3, 0.03, 16, 32, 512, False, 0.0),
    "high_quality": ("lora", 1e-5, 2, 16, 5, 0.05, 128, 256, 2048, True, 0.01),
    "ultra_low_memory": ("qlora", 2e-4, 1, 32, 3, 0.03, 8, 16, 512, True, 0.0),
    "8gb-gpu": ("qlora", 2e-4, 1, 8, 3, 0.03, 8, 16, 1024, None, 0.0),
    "24gb-gpu": ("lora", 2e-4, 4, 4, 3, 0.03, 8, 16, 2048, None, 0.0),
}


def config_of(preset: Preset) -> TrainingConfig:
    given = {"model_name": "demo-llava", "train_data_path": "datasets/a/train.jsonl"}
    return msgspec.convert(given | preset.config, TrainingConfig)


@pytest.mark.parametrize(("name", "gib"), [("8gb-gpu", 8), ("24gb-gpu", 24), ("ultra_low_memory", 8)])
def test_a_preset_for_a_gpu_fits_a_7b_model_into_it(name: str, gib: int) -> None:
    shape = model_shapes.known_shape("llava-hf/llava-1.5-7b-hf")
    assert shape
    assert footprint.reserve_bytes(config_of(presets.preset(name)), shape) <= gib * footprint.GIB


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_a_config_that_a_training_takes(preset: Preset) -> None:
    config = config_of(preset)
    assert config.lora_alpha >= config.lora_rank
    assert preset.title
    assert preset.description.endswith(".")


@pytest.mark.parametrize("name", PROMISED)
def test_a_preset_has_the_promised_values(name: str) -> None:
    config = config_of(presets.preset(name))
    assert PROMISED[name] == (
        config.method, config.learning_rate, config.batch_size, config.gradient_accumulation_steps, config.num_epochs,
        config.warmup_ratio, config.lora_rank, config.lora_alpha, config.max_length, config.bf16, config.weight_decay,
    )  # fmt: skip


def test_every_preset_but_the_demos_is_promised_and_names_are_unique() -> None:
    names = [preset.name for preset in PRESETS]
    assert sorted(names) == sorted({*PROMISED, "demo"})
    assert {each.name for each in PRESETS if each.needs_validation_data} == {"production", "high_quality"}


def test_the_method_follows_the_preset_whatever_was_chosen_before() -> None:
    chosen = {"use_lora": False, "use_qlora": True, "fp16": True}
    for preset in PRESETS:
        assert {"use_lora", "use_qlora"} <= preset.config.keys(), preset.name
        if "bf16" in preset.config:
            msgspec.convert({"model_name": "m", "train_data_path": "d"} | chosen | preset.config, TrainingConfig)
