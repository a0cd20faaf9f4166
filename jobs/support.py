"""What works together, written out: families of models, methods, devices, number formats, several processes. What is
not here is refused.

The service asks at plan and start time, the recipe once it knows a model's config and the device. `docs/support.md` is
made of it.
"""

from typing import Literal

import msgspec

from jobs.training_config import TrainingConfig

Method = Literal["full", "lora", "qlora"]
Bits = Literal[4, 8]
Device = Literal["cuda", "cpu"]
Format = Literal["fp32", "bf16", "fp16"]


class Processes(msgspec.Struct, frozen=True, kw_only=True):
    """What each of several processes has, and the library by which they add up gradients."""

    has: str
    talks_by: str


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A family of models, by the `model_type` of its config.json.

    `knows_places`: its makers taught it to read and write places in a picture as coordinates, by what they say of it;
    others know little of that. `is_tested`: the tests train it; the others are made of the same layers and are not
    tried by the tests.
    """

    title: str
    sees_images: bool
    knows_places: bool = False
    methods: tuple[Method, ...] = ("full", "lora", "qlora")
    is_tested: bool = False


def _eyes(title: str, *, knows_places: bool = False, is_tested: bool = False) -> Family:
    return Family(title=title, sees_images=True, knows_places=knows_places, is_tested=is_tested)


def _text(title: str, *, is_tested: bool = False) -> Family:
    return Family(title=title, sees_images=False, is_tested=is_tested)


FAMILIES: dict[str, Family] = {
    "llava": _eyes("LLaVA 1.5", is_tested=True),
    "llava_next": _eyes("LLaVA-NeXT", is_tested=True),
    "llava_onevision": _eyes("LLaVA-OneVision", is_tested=True),
    "qwen2_vl": _eyes("Qwen2-VL", knows_places=True, is_tested=True),
    "qwen2_5_vl": _eyes("Qwen2.5-VL", knows_places=True, is_tested=True),
    "qwen3_vl": _eyes("Qwen3-VL", knows_places=True, is_tested=True),
    "gemma3": _eyes("Gemma 3", is_tested=True),
    "idefics3": _eyes("Idefics3, SmolVLM", is_tested=True),
    "smolvlm": _eyes("SmolVLM2", is_tested=True),
    "paligemma": _eyes("PaliGemma", knows_places=True, is_tested=True),
    "internvl": _eyes("InternVL", knows_places=True, is_tested=True),
    "llama": _text("Llama, and what shares its layers: SmolLM2, Vicuna", is_tested=True),
    "mistral": _text("Mistral"),
    "qwen2": _text("Qwen2, Qwen2.5", is_tested=True),
    "qwen3": _text("Qwen3, Instruct 2507"),
    "gemma": _text("Gemma"),
    "gemma2": _text("Gemma 2"),
    "gemma3_text": _text("Gemma 3, text"),
}

FORMATS: dict[tuple[Method, Device], tuple[Format, ...]] = {
    ("full", "cuda"): ("bf16", "fp16", "fp32"),
    ("lora", "cuda"): ("bf16", "fp16", "fp32"),
    ("qlora", "cuda"): ("bf16", "fp16", "fp32"),
    ("full", "cpu"): ("fp32", "bf16"),
    ("lora", "cpu"): ("fp32", "bf16"),
    ("qlora", "cpu"): ("bf16", "fp32"),
}
"""By method and device; the first is taken where the configuration leaves it open, if the device has it."""

BITS: dict[Bits, dict[Device, str]] = {
    4: {"cuda": "all", "cpu": "all"},
    8: {"cuda": "compute capability 7.5 or newer, which has integer tensor cores"},
}
"""Devices that compute with a base in so many bits (`qlora_bits`), and which of them."""

PROCESSES: dict[Device, Processes] = {
    "cuda": Processes(has="a GPU of the same host to itself, with the whole model on it", talks_by="NCCL"),
    "cpu": Processes(has="an equal part of the cores; all share the host's memory", talks_by="Gloo"),
}
"""What several processes of a training (`num_processes`) have of a host, with every method the device computes."""

CONTINUES: dict[Method, tuple[Method, ...]] = {
    "full": ("full",),
    "lora": ("lora", "qlora"),
    "qlora": ("lora", "qlora"),
}
"""Which methods may go on from what which method trained."""


def why_not_family(family: str, method: Method) -> str | None:
    """Why a family of models cannot be trained so; None when it can."""
    known = FAMILIES.get(family)
    if known is None:
        return (
            f"Models of the type {family!r} are not known to train correctly here. "
            f"Use one of these: {', '.join(sorted(FAMILIES))}."
        )
    if method not in known.methods:
        return f"{known.title} cannot be trained with {method}. Use {' or '.join(known.methods)}."
    return None


def why_not_device(config: TrainingConfig, device: Device) -> str | None:
    """Why a training cannot run on a sort of device; None when it can."""
    if config.method == "qlora" and device not in BITS[config.qlora_bits]:
        return f"qlora_bits {config.qlora_bits} needs a GPU: set qlora_bits to 4, or use_qlora to false."
    return None


def why_not_continue(config: TrainingConfig, earlier: TrainingConfig) -> str | None:
    """Why a training cannot go on from another's weights; None when it can."""
    if config.method not in CONTINUES[earlier.method]:
        return (
            f"That training used the method {earlier.method} and this one uses {config.method}: "
            "set use_lora and use_qlora as they were there."
        )
    theirs = earlier.lora_rank, earlier.lora_alpha
    if config.method != "full" and (config.lora_rank, config.lora_alpha) != theirs:
        return (
            f"The adapters of that training have rank {earlier.lora_rank} and alpha {earlier.lora_alpha}: "
            "set lora_rank and lora_alpha to these."
        )
    return None


def why_not_data(family: str, has_images: bool) -> str | None:
    """Why a family cannot learn from such rows; None when it can."""
    known = FAMILIES.get(family)
    if has_images and known is not None and not known.sees_images:
        return f"The rows have pictures and {known.title} reads text only: choose a vision-language model."
    return None
