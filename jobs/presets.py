"""Named settings to begin a training with. A preset says only what it sets; the rest keeps its default.

The service lists them, the page fills its form from them, the demo trains with `demo`.
"""

import msgspec

from jobs.models import DEMO_MODEL

Config = dict[str, bool | int | float | str]
"""Some fields of a `TrainingConfig`, by name."""


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """`description` says what it is good for. Where validation data is needed, the run is judged by it."""

    name: str
    title: str
    description: str
    config: Config
    needs_validation_data: bool = False


def _batches(size: int, accumulated: int) -> Config:
    return {"batch_size": size, "gradient_accumulation_steps": accumulated}


def _lora(rank: int, alpha: int) -> Config:
    return {"use_lora": True, "use_qlora": False, "lora_rank": rank, "lora_alpha": alpha}


def _qlora(rank: int, alpha: int) -> Config:
    return _lora(rank, alpha) | {"use_qlora": True}


_BF16: Config = {"fp16": False, "bf16": True}
_FP16: Config = {"fp16": True, "bf16": False}

PRESETS = (
    Preset(
        name="demo",
        title="Demo",
        description="Trains the small built-in model in a few minutes on any computer, to see the whole path at work.",
        config=_batches(16, 1)
        | {
            "model_name": DEMO_MODEL,
            "use_lora": False,
            "use_qlora": False,
            "learning_rate": 1e-3,
            "num_epochs": 14,
            "warmup_ratio": 0.1,
            "max_length": 256,
            "save_steps": 200,
            "eval_steps": 20,
            "logging_steps": 5,
        },
    ),
    Preset(
        name="quick_test",
        title="Quick test",
        description="One short epoch with small adapters, to find out whether data and model fit together.",
        config=_lora(8, 16)
        | _batches(2, 2)
        | _BF16
        | {"learning_rate": 1e-4, "num_epochs": 1, "warmup_ratio": 0.1, "max_length": 512},
    ),
    Preset(
        name="development",
        title="Development",
        description="Solid settings for trying out data and prompts before a long run.",
        config=_lora(32, 64)
        | _batches(4, 4)
        | _BF16
        | {"learning_rate": 2e-5, "num_epochs": 3, "warmup_ratio": 0.03, "max_length": 1024},
    ),
    Preset(
        name="production",
        title="Production",
        description="Larger adapters and more epochs for the model that will be used; judged on validation data.",
        config=_lora(64, 128)
        | _batches(4, 8)
        | _BF16
        | {"learning_rate": 2e-5, "num_epochs": 5, "warmup_ratio": 0.03, "max_length": 2048, "weight_decay": 0.01},
        needs_validation_data=True,
    ),
    Preset(
        name="high_quality",
        title="High quality",
        description="The 13B model with the largest adapters, for a GPU with much memory; judged on validation data.",
        config=_lora(128, 256)
        | _batches(2, 16)
        | _BF16
        | {
            "model_name": "llava-hf/llava-1.5-13b-hf",
            "learning_rate": 1e-5,
            "num_epochs": 5,
            "warmup_ratio": 0.05,
            "max_length": 2048,
            "weight_decay": 0.01,
        },
        needs_validation_data=True,
    ),
    Preset(
        name="memory_efficient",
        title="Memory efficient",
        description="One short row at a time, for a GPU that runs out of memory otherwise.",
        config=_lora(16, 32)
        | _batches(1, 16)
        | _FP16
        | {"learning_rate": 2e-5, "num_epochs": 3, "warmup_ratio": 0.03, "max_length": 512},
    ),
    Preset(
        name="ultra_low_memory",
        title="Ultra-low memory",
        description="The base in 4 bits and the smallest adapters: the least memory a large model can be trained in.",
        config=_qlora(8, 16)
        | _batches(1, 32)
        | _BF16
        | {"learning_rate": 2e-4, "num_epochs": 3, "warmup_ratio": 0.03, "max_length": 512},
    ),
    Preset(
        name="8gb-gpu",
        title="8 GB GPU",
        description="The base in 4 bits, for a 7B model on a GPU with 8 GB.",
        config=_qlora(8, 16) | _batches(1, 8) | {"max_length": 1024},
    ),
    Preset(
        name="24gb-gpu",
        title="24 GB GPU",
        description="Adapters on the whole base, for a 7B model on a GPU with 24 GB.",
        config=_lora(8, 16) | _batches(4, 4) | {"max_length": 2048},
    ),
)


def preset(name: str) -> Preset:
    """Raises KeyError for a name that is none."""
    return {each.name: each for each in PRESETS}[name]
