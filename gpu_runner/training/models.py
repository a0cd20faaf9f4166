"""The one door to models: a base model, what a finetune job trained, what an export holds.

Called by the recipes finetune, evaluate and generate and by the exporters. Safetensors only, and code from a
model's repository is never run: neither can be reached by a setting.
"""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from gpu_runner.training import adapters, checkpoints, demo_model, device
from gpu_runner.training.adapters import ADAPTER_CONFIG
from gpu_runner.training.checkpoints import Checkpoint
from gpu_runner.training.device import Compute
from gpu_runner.training.encoding import RowEncoder
from jobs import models
from jobs.errors import ModelUnavailable, NoCapacity
from jobs.models import ModelSource, Origin
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import EvaluateSpec, GenerateSpec

EXPORTED = "model"  # the folder inside an export's folder
_NOT_LOADABLE = (OSError, ValueError, KeyError, ImportError, SafetensorError)


@dataclass(frozen=True)
class Loaded:
    """A model on its device with its processor (a plain tokeniser where it reads text only)."""

    model: Any
    processor: Any
    source: ModelSource
    compute: Compute

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens after which the model stops."""
        configured = self.model.generation_config.eos_token_id
        more = configured if isinstance(configured, list) else [configured]
        return frozenset(token for token in (self.tokenizer.eos_token_id, *more) if token is not None)

    @property
    def longest(self) -> int | None:
        """The most tokens the model was made for."""
        text = self.model.config.get_text_config()
        return getattr(text, "max_position_embeddings", None)

    def encoder(self, max_length: int) -> RowEncoder:
        return RowEncoder(self.processor, max_length, self.end_ids)


def source_of(name: str, root: DataRoot, settings: Settings) -> ModelSource:
    """Resolve a client's model name on this host. Raises InvalidInput for a name that can never work."""
    return models.resolve(name, [root.models, *map(Path, settings.model_roots)])


def check_capacity(source: ModelSource, on: str, asked: str, *, offline: bool = False) -> None:
    """Raises NoCapacity when a large model would run on a CPU that nobody asked for."""
    if asked == "cpu" or torch.device(on).type != "cpu":
        return
    count = source.parameters
    if count is None:
        count = sum(parameter.numel() for parameter in _skeleton(_config(source, offline)).parameters())
    if count > models.CPU_LIMIT_PARAMETERS:
        raise NoCapacity(
            f"{source.name} has {count / 1e9:.1f} billion parameters and this runner has no GPU. Start a runner on a "
            "host with a GPU, choose a smaller model, or set device to 'cpu' to run it here slowly."
        )


def load_base(
    source: ModelSource, *, device: str, dtype: torch.dtype, four_bit: bool = False, offline: bool = False
) -> Loaded:
    """Load a model with its processor, weights in `dtype`; `four_bit` makes the language model's layers NF4.

    Raises:
        ModelUnavailable: it cannot be had or loaded; the message says what to do.
    """
    if source.origin is Origin.BUILT_IN:
        demo_model.ensure(Path(source.location))
    transformers_logging.disable_progress_bar()
    config = _config(source, offline)
    options: dict[str, Any] = {}
    if four_bit:
        quantisation = adapters.four_bit(_skeleton(config), dtype)
        options = {"quantization_config": quantisation, "device_map": {"": device}}
    with _told_plainly(source):
        model = _load_weights(source, config, dtype=dtype, local_files_only=offline, **options)
        processor = load_processor(source.location, sees_images=_sees_images(config), offline=offline)
    if four_bit:
        adapters.check_four_bit(model)
        adapters.keep_gradients(model)
    else:
        model.to(device)
    return Loaded(model.eval(), processor, source, Compute(torch.device(device), dtype))


def load_processor(location: str | Path, *, sees_images: bool, offline: bool = False) -> Any:
    """The processor, or the tokeniser of a text model; it always has a padding token."""
    kind = AutoProcessor if sees_images else AutoTokenizer
    processor = kind.from_pretrained(location, trust_remote_code=False, local_files_only=offline)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not processor.chat_template:
        raise ModelUnavailable(f"{location} has no chat template: use its instruction-tuned variant.")
    return processor


def load_finetuned(
    root: DataRoot, settings: Settings, job_id: str, device_name: str, *, four_bit: bool | None = None
) -> Loaded:
    """What a finetune job has trained so far, from its newest verified checkpoint.

    `four_bit` None means as it was trained; an export merges into full precision and says False.

    Raises:
        ModelUnavailable: there is no whole checkpoint, or its base model cannot be had.
    """
    return load_checkpoint(_newest(root, job_id), root, settings, device_name, four_bit=four_bit)


def load_checkpoint(
    checkpoint: Checkpoint, root: DataRoot, settings: Settings, device_name: str, *, four_bit: bool | None = None
) -> Loaded:
    """The model of one checkpoint, adapters on their base. Raises ModelUnavailable."""
    if four_bit is None:
        four_bit = checkpoint.manifest.method == "qlora"
    manifest = checkpoint.manifest
    source = _source_of_folder(checkpoint.model, root, settings, base=manifest.model_name)
    return _load_folder(checkpoint.model, source, settings, device_name, four_bit=four_bit)


def load_export(folder: Path, root: DataRoot, settings: Settings, device_name: str) -> Loaded:
    """The model of an export's folder: merged weights, or adapters on the base their config names.

    Raises:
        ModelUnavailable: the folder holds neither, or the base model cannot be had.
    """
    source = _source_of_folder(folder, root, settings)
    return _load_folder(folder, source, settings, device_name, four_bit=False)


def load_named(spec: EvaluateSpec | GenerateSpec, root: DataRoot, settings: Settings, device_name: str) -> Loaded:
    """The model a spec names: a job's, an export's, or an untrained one.

    Raises:
        ModelUnavailable, NoCapacity: it cannot be had, or is too large for this runner.
    """
    offline = settings.hf_offline
    if spec.job_id is not None:
        checkpoint = _newest(root, spec.job_id)
        source = source_of(checkpoint.manifest.model_name, root, settings)
        check_capacity(source, device_name, spec.device, offline=offline)
        return load_checkpoint(checkpoint, root, settings, device_name)
    if spec.export_id is not None:
        folder = root.export(spec.export_id) / EXPORTED
        check_capacity(_source_of_folder(folder, root, settings), device_name, spec.device, offline=offline)
        return load_export(folder, root, settings, device_name)
    source = source_of(spec.model_name or "", root, settings)
    check_capacity(source, device_name, spec.device, offline=offline)
    best = device.best(device_name)
    return load_base(source, device=device_name, dtype=best.dtype, offline=offline)


def folder_source(folder: Path, name: str) -> ModelSource:
    """A model folder of our own, under the name people know it by."""
    parameters = models.count_parameters(folder)
    return ModelSource(name=name, origin=Origin.FOLDER, location=str(folder), parameters=parameters)


def _newest(root: DataRoot, job_id: str) -> Checkpoint:
    checkpoint = checkpoints.newest_verified(root, job_id)
    if checkpoint is None:
        raise ModelUnavailable(f"Job {job_id} has no complete checkpoint: train it first, or choose another job.")
    return checkpoint


def _source_of_folder(folder: Path, root: DataRoot, settings: Settings, *, base: str = "") -> ModelSource:
    """Where the weights of a folder of ours come from: itself, or for adapters their base model."""
    adapter_config = folder / ADAPTER_CONFIG
    if not adapter_config.is_file():
        return folder_source(folder, base or folder.parent.name)
    return source_of(base or json.loads(adapter_config.read_bytes())["base_model_name_or_path"], root, settings)


def _load_folder(folder: Path, source: ModelSource, settings: Settings, device_name: str, *, four_bit: bool) -> Loaded:
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    dtype = torch.bfloat16 if four_bit else device.best(device_name).dtype
    loaded = load_base(
        source, device=device_name, dtype=dtype, four_bit=four_bit and is_adapter, offline=settings.hf_offline
    )
    if not is_adapter:
        return loaded
    return Loaded(adapters.load(loaded.model, folder), loaded.processor, source, loaded.compute)


def _config(source: ModelSource, offline: bool) -> PretrainedConfig:
    folder = Path(source.location)
    if source.origin is not Origin.HUB:
        _check_folder(source, folder)
    with _told_plainly(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.location, trust_remote_code=False, local_files_only=offline
        )
    return config


def _check_folder(source: ModelSource, folder: Path) -> None:
    """Refuse what would run code or unpickle."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise ModelUnavailable(f"{source.name}: {path.name} is not readable JSON; copy the model again.") from None
        if _mentions(content, "auto_map"):
            raise ModelUnavailable(
                f"{source.name}: {path.name} asks for code from the model's folder ('auto_map'), which is never run. "
                "Use a model that transformers supports by itself."
            )
    if not any(folder.glob("*.safetensors")):
        raise ModelUnavailable(
            f"{source.name} has no .safetensors file: save it with save_pretrained(safe_serialization=True)."
        )


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_mentions(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_mentions(inner, key) for inner in value)


def _load_weights(source: ModelSource, config: PretrainedConfig, **options: Any) -> Any:
    """The model with every weight its config asks for."""
    kind: Any = AutoModelForImageTextToText if _sees_images(config) else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        source.location, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    _check_whole(source, info)
    return model


def _sees_images(config: PretrainedConfig) -> bool:
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _skeleton(config: PretrainedConfig) -> nn.Module:
    """The model on the meta device: every name and shape, no memory."""
    kind = AutoModelForImageTextToText if _sees_images(config) else AutoModelForCausalLM
    with torch.device("meta"):
        skeleton: nn.Module = kind.from_config(config, trust_remote_code=False)
    return skeleton


def _check_whole(source: ModelSource, info: dict[str, Any]) -> None:
    """Weights that are missing would be random numbers, silently."""
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise ModelUnavailable(
            f"{source.name} lacks {len(missing)} of its weights, such as {missing[0]}: copy or export it again."
        )


@contextmanager
def _told_plainly(source: ModelSource) -> Iterator[None]:
    """Raises ModelUnavailable for whatever a loader says."""
    try:
        yield
    except _NOT_LOADABLE as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ModelUnavailable(_remedy(source, error)) from error


def _remedy(source: ModelSource, error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0][:200]
    if source.origin is Origin.HUB and isinstance(error, OSError):
        return (
            f"{source.name} cannot be had from the model hub or its local cache. Check the name and this runner's "
            f"network, or copy the model's folder below the data root's models/ and give its path; "
            f"'{models.DEMO_MODEL}' needs no download."
        )
    if isinstance(error, ImportError):
        return f"{source.name} needs a package this runner lacks ({first_line}). Install training-api[vision] there."
    return f"{source.name} cannot be loaded ({first_line}). Use a model that this transformers version supports."
