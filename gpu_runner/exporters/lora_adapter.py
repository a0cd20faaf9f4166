"""A folder for `PeftModel.from_pretrained` of peft: the adapters alone, with the processor they were trained with.

The base model is named as its users can get it: a hub repository, or the name the client gave.
"""

from dataclasses import replace
from pathlib import Path

from gpu_runner.training import adapters, models
from gpu_runner.training.device import Compute
from gpu_runner.training.models import Loaded
from jobs.models import ModelSource, Origin


def prepare(trained: Loaded) -> Loaded:
    for adapter in trained.model.peft_config.values():
        adapter.base_model_name_or_path = base_name(trained.source)  # never a path of this host
    return trained


def save(prepared: Loaded, folder: Path) -> None:
    prepared.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card is an empty form
    prepared.processor.save_pretrained(folder)


def reload(folder: Path, source: ModelSource, compute: Compute) -> Loaded:
    base = models.load_base(source, device=str(compute.device), dtype=compute.dtype, offline=True)
    processor = models.load_processor(folder, sees_images=hasattr(base.processor, "image_processor"), offline=True)
    return replace(base, model=adapters.load(base.model, folder, compute.device), processor=processor)


def base_name(source: ModelSource) -> str:
    """What others call the base model."""
    return source.location if source.origin is Origin.HUB else source.name
