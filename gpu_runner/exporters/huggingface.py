"""A folder for `from_pretrained` of transformers: adapters merged, processor and chat template included."""

from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from gpu_runner.training import models
from gpu_runner.training.device import Compute
from gpu_runner.training.models import Loaded
from jobs.models import ModelSource


def prepare(trained: Loaded) -> Loaded:
    """The model as one set of weights. Adapters are added to the full-precision base they were loaded on: merging
    into 4-bit weights would round the difference away."""
    if not isinstance(trained.model, PeftModel):
        return trained
    return replace(trained, model=trained.model.merge_and_unload(safe_merge=True))


def save(prepared: Loaded, folder: Path) -> None:
    prepared.model.save_pretrained(folder)
    prepared.processor.save_pretrained(folder)


def reload(folder: Path, source: ModelSource, compute: Compute) -> Loaded:
    exported = models.folder_source(folder, "The export")
    return models.load_base(exported, device=str(compute.device), dtype=compute.dtype, offline=True)
