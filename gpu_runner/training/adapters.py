"""LoRA adapters and the 4-bit or 8-bit base: which layers they may touch, and proof that they touched no others.

Used by `models`. Adapters and quantisation stay in the language model; eyes and projector keep what they are.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from jobs.errors import ModelUnavailable
from jobs.training_config import TrainingConfig

Bits = Literal[4, 8]
ADAPTER_CONFIG = "adapter_config.json"
PARTS = ("vision", "projector", "language")
_PROJECTOR = ("multi_modal_projector", "connector", "mlp1", "visual.merger", "image_newline")
_VISION = ("vision_tower", "vision_model", "visual", "vision_embed")
_LAYERS = {4: "Linear4bit", 8: "Linear8bitLt"}
_LINEARS = r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# A bare "q_proj" would also match the CLIP tower.
TARGETS = rf"(?!.*(?:vision|visual|projector|connector)).*\.{_LINEARS}"


def part_of(name: str) -> str:
    """Which part of the model a parameter or module belongs to, by its dotted name."""
    if any(word in name for word in _PROJECTOR):
        return "projector"
    return "vision" if any(word in name for word in _VISION) else "language"


def parameters_by_part(model: nn.Module, *, trainable_only: bool = False) -> dict[str, int]:
    """Parameter counts by part; a 4-bit weight counts as the numbers it stands for, not as its bytes."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trainable_only:
            state = getattr(parameter, "quant_state", None)
            counts[part_of(name)] += parameter.numel() if state is None else state.shape.numel()
    return counts


def attach(model: nn.Module, config: TrainingConfig) -> PeftModel:
    """The model with fresh LoRA adapters on the language model's linear layers; everything else is frozen.

    Raises:
        ModelUnavailable: the model has no such layers, or others match.

    Source: LoRA, arXiv 2106.09685; all linear layers as in QLoRA, arXiv 2305.14314.
    """
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        with _without_its_own_deprecation():
            adapted: PeftModel = get_peft_model(model, lora)
    except ValueError as error:
        raise ModelUnavailable(
            "LoRA finds none of the layers it knows (q_proj, k_proj, …) in this model: train it with use_lora=false, "
            "or use a model of the Llama, Qwen, Gemma or Mistral families."
        ) from error
    trainable = parameters_by_part(adapted, trainable_only=True)
    if trainable["vision"] or trainable["projector"] or not trainable["language"]:
        raise ModelUnavailable(f"LoRA found other layers than the language model's: {trainable}. Use full training.")
    run_frozen_parts_without_gradients(adapted)
    return adapted


def run_frozen_parts_without_gradients(model: nn.Module) -> None:
    """Keep nothing of the eyes' and the projector's work for a backward pass where nothing in them is trained."""
    for name in _outside_language(model):
        part: Any = model.get_submodule(name)
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.forward = torch.no_grad()(part.forward)


def load(model: nn.Module, folder: Path, device: torch.device) -> PeftModel:
    """The model with saved adapters, for inference. Untold, peft would put them on the first GPU it finds."""
    with _without_its_own_deprecation():
        adapted: PeftModel = PeftModel.from_pretrained(model, folder, torch_device=str(device))
    return adapted.eval()


def quantisation(skeleton: nn.Module, dtype: torch.dtype, bits: Bits) -> BitsAndBytesConfig:
    """For the language model: NF4 with double quantisation, or LLM.int8. `skeleton` is the model on the meta device.

    `llm_int8_skip_modules` matches from the start of a name, so each part to be skipped is given in full.
    """
    left_out = [*_outside_language(skeleton), "lm_head"]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_out)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=left_out,
    )


def quantised_layers(model: nn.Module, bits: Bits) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ == _LAYERS[bits]]


def keep_gradients(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights at the first evaluation.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 moves them to a layout for inference whose product has no backward:
    training after an evaluation would go on with wrong gradients and only a warning.
    """
    for name in quantised_layers(model, 4):
        layer: Any = model.get_submodule(name)
        layer.support_avx512bf16_for_cpu = False


def check_quantised(model: nn.Module, bits: Bits) -> None:
    """Raises ModelUnavailable unless linear layers of the language model, and no others, are of so many bits."""
    layers = quantised_layers(model, bits)
    elsewhere = [name for name in layers if part_of(name) != "language"]
    if elsewhere or not layers:
        where = elsewhere[0] if elsewhere else "no layer at all"
        raise ModelUnavailable(f"{bits}-bit loading reached {where}; use use_qlora=false for this model.")


def rank_and_alpha(model: PeftModel) -> tuple[int, float]:
    """Rank and alpha of a model's adapters."""
    lora: Any = model.peft_config["default"]
    return lora.r, lora.lora_alpha


def rank_and_alpha_of(folder: Path) -> tuple[int, float]:
    """Rank and alpha of saved adapters."""
    lora = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    return lora["r"], lora["lora_alpha"]


@contextmanager
def _without_its_own_deprecation() -> Iterator[None]:
    """peft 0.21 asks transformers for `is_gradient_checkpointing`, which transformers 5.23 warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def _outside_language(model: nn.Module) -> list[str]:
    """The shortest module names that lie wholly outside the language model."""
    found: list[str] = []
    for name, _ in model.named_modules():
        if name and part_of(name) != "language" and not any(name.startswith(f"{known}.") for known in found):
            found.append(name)
    return found
