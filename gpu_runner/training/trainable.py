"""The model a finetune job trains: full weights, or adapters on a frozen base, from where it begins.

Called by the recipe finetune. A run that is resumed and one that continues another job begin the same way: with
the weights of a checkpoint.
"""

from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from gpu_runner.training import adapters, device, models
from gpu_runner.training.checkpoints import Checkpoint
from gpu_runner.training.device import Compute
from gpu_runner.training.models import Loaded
from jobs import support
from jobs.errors import ModelUnavailable, NoCapacity
from jobs.footprint import DeviceType, recomputes_activations
from jobs.models import ModelSource
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.training_config import TrainingConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load(
    source: ModelSource, config: TrainingConfig, compute: Compute, begin: Checkpoint | None, *, offline: bool
) -> Loaded:
    """The model in train mode, exactly what is to be trained requiring gradients.

    Full training keeps float32 weights and only computes in `compute.dtype`; a frozen base is held in it.

    Raises:
        ModelUnavailable: it cannot be loaded, or the checkpoint does not fit the configuration.
        NoCapacity: the device does not compute with a base in so few bits.
    """
    _check_bits(config, compute)
    if config.method == "full":
        begin_source = source if begin is None else models.folder_source(begin.model, source.name)
        loaded = models.load_base(begin_source, device=str(compute.device), dtype=torch.float32, offline=offline)
        loaded = Loaded(loaded.model, loaded.processor, source, compute)
    else:
        bits = config.qlora_bits if config.method == "qlora" else None
        loaded = models.load_base(source, device=str(compute.device), dtype=compute.dtype, bits=bits, offline=offline)
        loaded = Loaded(adapters.attach(loaded.model, config), loaded.processor, source, compute)
        if begin is not None:
            _load_adapters(loaded, begin)
    _save_memory(loaded, config)
    train_mode(loaded)
    return loaded


def train_mode(loaded: Loaded) -> None:
    """Train mode for what is trained; frozen eyes and projector stay in eval mode, without dropout."""
    loaded.model.train()
    trainable = adapters.parameters_by_part(loaded.model, trainable_only=True)
    for name, module in loaded.model.named_modules():
        if not trainable[adapters.part_of(name)]:
            module.eval()


def _check_bits(config: TrainingConfig, compute: Compute) -> None:
    kind: support.Device = "cuda" if compute.device.type == "cuda" else "cpu"
    why = support.why_not_device(config, kind)
    if why is None and config.method == "qlora" and not device.has_bits(str(compute.device), config.qlora_bits):
        why = (
            "qlora_bits 8 needs a GPU with integer tensor cores (compute capability 7.5 or newer), and this job has "
            f"{device.name(compute.device)}: set qlora_bits to 4, or use_qlora to false."
        )
    if why is not None:
        raise NoCapacity(why)


def check_fits(begin: Checkpoint, config: TrainingConfig, root: DataRoot, settings: Settings) -> None:
    """Raises ModelUnavailable unless a job with this configuration can go on from another job's checkpoint."""
    made = begin.manifest
    theirs, ours = (models.source_of(name, root, settings) for name in (made.model_name, config.model_name))
    if theirs.location != ours.location:
        raise ModelUnavailable(f"Job {made.job_id} trained {made.model_name}: set model_name to that to continue it.")
    if (made.method == "full") != (config.method == "full"):
        raise ModelUnavailable(
            f"Job {made.job_id} was trained with method {made.method} and this one uses {config.method}: "
            "set use_lora and use_qlora as they were there."
        )


def _load_adapters(loaded: Loaded, begin: Checkpoint) -> None:
    rank, alpha = adapters.rank_and_alpha(loaded.model)
    other_rank, other_alpha = adapters.rank_and_alpha_of(begin.model)
    if (rank, alpha) != (other_rank, other_alpha):
        raise ModelUnavailable(
            f"The adapters of job {begin.manifest.job_id} have rank {other_rank} and alpha {other_alpha}: "
            "set lora_rank and lora_alpha to these to continue it."
        )
    outcome: Any = set_peft_model_state_dict(loaded.model, load_file(begin.model / ADAPTER_WEIGHTS))
    if outcome.unexpected_keys:
        raise ModelUnavailable(
            f"The adapters of job {begin.manifest.job_id} belong to other layers, such as {outcome.unexpected_keys[0]}."
        )


def recompute_activations(loaded: Loaded) -> None:
    """Keep no activations between layers. Nothing frozen enters the graph for it: only re-entrant checkpointing
    wants inputs that require gradients, and transformers makes those of every part's embeddings."""
    loaded.model.activation_checkpointing_enable()
    loaded.model.disable_input_require_grads()


def _save_memory(loaded: Loaded, config: TrainingConfig) -> None:
    """As the estimate of its memory supposes."""
    total = sum(adapters.parameters_by_part(loaded.model).values())
    kind: DeviceType = "cuda" if loaded.compute.device.type == "cuda" else "cpu"
    if recomputes_activations(config, kind, total):
        recompute_activations(loaded)
