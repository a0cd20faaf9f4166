"""The export formats: one file each with the same three functions. The list below is the registry.

    prepare(trained) -> Loaded             what the export will hold, in memory; may change `trained.model`
    save(prepared, folder)                 write it, with everything that is needed to load it again
    reload(folder, source, compute)        load it as its users will: plain transformers or peft, from disk, offline

Read in this order: `trained_job` · `huggingface` · `lora_adapter` · `verification` · `dataset_facts` ·
`model_card` · `archive`.
The recipe `export` calls them.
"""

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from gpu_runner.training.device import Compute
from gpu_runner.training.models import Loaded
from jobs.models import ModelSource
from jobs.specs import ExportFormat

EXPORTERS = {
    ExportFormat.HUGGINGFACE: "gpu_runner.exporters.huggingface",
    ExportFormat.LORA_ADAPTER: "gpu_runner.exporters.lora_adapter",
}
UNSUPPORTED = (ExportFormat.ONNX, ExportFormat.TFLITE)
"""The service refuses these with 501 before a job exists."""


class Exporter(Protocol):
    """The signature of an exporter's module. `source` is the base model the job began with."""

    def prepare(self, trained: Loaded) -> Loaded: ...

    def save(self, prepared: Loaded, folder: Path) -> None: ...

    def reload(self, folder: Path, source: ModelSource, compute: Compute) -> Loaded: ...


def exporter(export_format: ExportFormat) -> Exporter:
    """The exporter of a format; imports its module."""
    return cast(Exporter, import_module(EXPORTERS[export_format]))
