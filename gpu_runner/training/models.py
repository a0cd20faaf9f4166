"""The one door to models: a base model, what a finetune job trained, what an export holds.

Called by the recipes finetune, evaluate and generate and by the exporters. Safetensors only, and code from a
model's repository is never run: neither can be reached by a setting.
"""

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
    GenerationConfig,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from gpu_runner.training import adapters, checkpoints, conversation, demo_model, device, lineage, without_video
from gpu_runner.training.adapters import ADAPTER_CONFIG, Bits
from gpu_runner.training.checkpoints import Checkpoint
from gpu_runner.training.device import Compute
from gpu_runner.training.encoding import RowEncoder
from jobs import model_shapes, models
from jobs.errors import ModelUnavailable, NoCapacity, is_disk_full
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
        return end_ids(self.processor, self.model.generation_config)

    @property
    def longest(self) -> int | None:
        """The most tokens the model was made for."""
        text = self.model.config.get_text_config()
        return getattr(text, "max_position_embeddings", None)

    def batch_rows(self, most: int) -> int:
        """Rows to answer at once: one where a large model already fills much of a GPU."""
        is_large = sum(parameter.numel() for parameter in self.model.parameters()) > models.CPU_LIMIT_PARAMETERS
        return 1 if is_large and self.compute.device.type == "cuda" else most

    def encoder(self, max_length: int, max_pixels: int | None = None) -> RowEncoder:
        return RowEncoder(
            self.processor,
            max_length,
            self.end_ids,
            image_token_id=image_token_id(self.model.config),
            max_pixels=max_pixels,
        )


def source_of(name: str, root: DataRoot, settings: Settings) -> ModelSource:
    """Resolve a client's model name on this host. Raises InvalidInput for a name that can never work."""
    return models.resolve(name, models.model_roots(settings, root))


def check_capacity(source: ModelSource, on: str, asked: str, *, offline: bool = False) -> None:
    """Raises NoCapacity when a large model would run on a CPU that nobody asked for."""
    if asked == "cpu" or torch.device(on).type != "cpu":
        return
    count = count_parameters(source, offline=offline)
    if count > models.CPU_LIMIT_PARAMETERS:
        raise NoCapacity(
            f"{source.name} has {count / 1e9:.1f} billion parameters and this runner has no GPU. Start a runner on a "
            "host with a GPU, choose a smaller model, or set device to 'cpu' to run it here slowly."
        )


def count_parameters(source: ModelSource, *, offline: bool = False) -> int:
    """How many parameters a model has, counted on its config where nobody knows. Raises ModelUnavailable."""
    if source.parameters is not None:
        return source.parameters
    return sum(parameter.numel() for parameter in _skeleton(_config(source, offline)).parameters())


@dataclass(frozen=True)
class Described:
    """A model without its weights: its config, itself on the meta device, its processor where that can be had."""

    config: PretrainedConfig
    skeleton: nn.Module
    processor: Any | None

    @property
    def family(self) -> str:
        return str(self.config.model_type)

    @property
    def longest(self) -> int | None:
        """The most tokens the model was made for."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def encoder(self, max_length: int, max_pixels: int | None = None) -> RowEncoder | None:
        """For counting tokens."""
        if self.processor is None:
            return None
        return RowEncoder(
            self.processor,
            max_length,
            end_ids(self.processor, GenerationConfig.from_model_config(self.config)),
            image_token_id=image_token_id(self.config),
            max_pixels=max_pixels,
        )


def describe(source: ModelSource, *, offline: bool = False) -> Described:
    """A model as its config says it is, no weight loaded. Of a well-known name that cannot be had here the dimensions
    are known all the same, and its processor is None.

    Raises:
        ModelUnavailable: it cannot be had, and nothing is known of it.
    """
    try:
        config = _config(source, offline)
        processor = load_processor(source.location, sees_images=_sees_images(config), offline=offline)
    except (ModelUnavailable, *_NOT_LOADABLE):
        known = model_shapes.known_config(source.location)
        if source.origin is not Origin.HUB or known is None:
            raise
        config, processor = AutoConfig.for_model(**known), None
    return Described(config, _skeleton(config), processor)


def stored_dtype(source: ModelSource, *, offline: bool = False) -> torch.dtype:
    """The number format a model's weights are kept in. Raises ModelUnavailable."""
    dtype = _config(source, offline).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def load_base(
    source: ModelSource, *, device: str, dtype: torch.dtype, bits: Bits | None = None, offline: bool = False
) -> Loaded:
    """Load a model with its processor, weights in `dtype`; with `bits` those of the language model's layers in these.

    Raises:
        ModelUnavailable: it cannot be had or loaded; the message says what to do.
    """
    transformers_logging.disable_progress_bar()
    config = _config(source, offline)
    options: dict[str, Any] = {}
    if bits:
        options["quantization_config"] = adapters.quantisation(_skeleton(config), dtype, bits)
    if bits or torch.device(device).type == "cuda":  # straight to the GPU: the host may not hold the model
        options["device_map"] = {"": device}
    with _told_plainly(source):
        model = _load_weights(source, config, dtype=dtype, local_files_only=offline, **options)
        processor = load_processor(source.location, sees_images=_sees_images(config), offline=offline)
    if bits:
        adapters.check_quantised(model, bits)
        adapters.keep_gradients(model)
    return Loaded(model.eval(), processor, source, Compute(torch.device(device), dtype))


def load_encoder(source: ModelSource, max_length: int, max_pixels: int | None, *, offline: bool = False) -> RowEncoder:
    """What makes tensors of rows for a model, without its weights. Raises ModelUnavailable."""
    config = _config(source, offline)
    with _told_plainly(source):
        processor = load_processor(source.location, sees_images=_sees_images(config), offline=offline)
        try:
            generation = GenerationConfig.from_pretrained(source.location, local_files_only=offline)
        except OSError:  # many have none
            generation = GenerationConfig.from_model_config(config)
    ends = end_ids(processor, generation)
    return RowEncoder(processor, max_length, ends, image_token_id=image_token_id(config), max_pixels=max_pixels)


def end_ids(processor: Any, generation: GenerationConfig) -> frozenset[int]:
    """Tokens after which the model stops."""
    configured = generation.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    own = getattr(processor, "tokenizer", processor).eos_token_id
    return frozenset(token for token in (own, *more) if token is not None)


def load_processor(location: str | Path, *, sees_images: bool, offline: bool = False) -> Any:
    """The processor, or the tokeniser of a text model; it always has a padding token."""
    without_video.allow()
    kind = AutoProcessor if sees_images else AutoTokenizer
    processor = kind.from_pretrained(location, trust_remote_code=False, local_files_only=offline)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if type(processor).__name__ == "PaliGemmaProcessor" and not processor.chat_template:
        processor.chat_template = conversation.PREFIX_TEMPLATE
    if not processor.chat_template:
        raise ModelUnavailable(f"{location} has no chat template: use its instruction-tuned variant.")
    return processor


def image_token_id(config: PretrainedConfig) -> int | None:
    """The placeholder that the model puts a picture's feature in; None where it reads text only."""
    token: int | None = getattr(config, "image_token_id", None)
    return token


def load_checkpoint(
    checkpoint: Checkpoint, root: DataRoot, settings: Settings, device_name: str, *, dtype: torch.dtype | None = None
) -> Loaded:
    """The model of one checkpoint, adapters on their base: as it was trained, or with all weights in `dtype`.

    Raises:
        ModelUnavailable: its base model cannot be had.
    """
    manifest = checkpoint.manifest
    bits = manifest.bits if manifest.method == "qlora" and dtype is None else None
    if bits and not device.has_bits(device_name, bits):
        bits = None
    source = source_of_weights(checkpoint, root, settings)
    return _load_folder(checkpoint.model, source, settings, device_name, bits=bits, dtype=dtype)


def source_of_weights(checkpoint: Checkpoint, root: DataRoot, settings: Settings) -> ModelSource:
    """Where most of a checkpoint's weights come from: itself, or the base model of its adapters."""
    return _source_of_folder(checkpoint.model, root, settings, base=checkpoint.manifest.model_name)


def load_export(export_id: str, root: DataRoot, settings: Settings, device_name: str) -> Loaded:
    """The model of an export: merged weights, or adapters on the base their config names, in 4 or 8 bits where they
    were trained so and the GPU cannot hold it otherwise.

    Raises:
        ModelUnavailable: the folder holds neither, or the base model cannot be had.
    """
    folder = root.export(export_id) / EXPORTED
    source = _source_of_folder(folder, root, settings)
    bits = lineage.bits(root, export_id)
    if bits and _fits(source, device_name, settings.hf_offline):
        bits = None
    return _load_folder(folder, source, settings, device_name, bits=bits)


def load_named(spec: EvaluateSpec | GenerateSpec, root: DataRoot, settings: Settings, device_name: str) -> Loaded:
    """The model a spec names: a job's, an export's, or an untrained one.

    Raises:
        ModelUnavailable, NoCapacity: it cannot be had, or is too large for this runner.
    """
    offline = settings.hf_offline
    if spec.job_id is not None:
        checkpoint = checkpoints.of_job(root, spec.job_id)
        source = source_of(checkpoint.manifest.model_name, root, settings)
        check_capacity(source, device_name, spec.device, offline=offline)
        return load_checkpoint(checkpoint, root, settings, device_name)
    if spec.export_id is not None:
        folder = root.export(spec.export_id) / EXPORTED
        check_capacity(_source_of_folder(folder, root, settings), device_name, spec.device, offline=offline)
        return load_export(spec.export_id, root, settings, device_name)
    source = source_of(spec.model_name or "", root, settings)
    check_capacity(source, device_name, spec.device, offline=offline)
    best = device.best(device_name)
    return load_base(source, device=device_name, dtype=best.dtype, offline=offline)


def folder_source(folder: Path, name: str) -> ModelSource:
    """A model folder of our own, under the name people know it by."""
    parameters = models.count_parameters(folder)
    return ModelSource(name=name, origin=Origin.FOLDER, location=str(folder), parameters=parameters)


def _fits(source: ModelSource, device_name: str, offline: bool) -> bool:
    """Whether the GPU has the memory for a model's weights at this moment; a CPU is taken at its word."""
    compute = device.best(device_name)
    if compute.device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(compute.device)
    return count_parameters(source, offline=offline) * compute.dtype.itemsize < free


def _source_of_folder(folder: Path, root: DataRoot, settings: Settings, *, base: str = "") -> ModelSource:
    """Where the weights of a folder of ours come from: itself, or for adapters their base model."""
    adapter_config = folder / ADAPTER_CONFIG
    if not adapter_config.is_file():
        return folder_source(folder, base or folder.parent.name)
    return source_of(base or json.loads(adapter_config.read_bytes())["base_model_name_or_path"], root, settings)


def _load_folder(
    folder: Path,
    source: ModelSource,
    settings: Settings,
    device_name: str,
    *,
    bits: Bits | None,
    dtype: torch.dtype | None = None,
) -> Loaded:
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    dtype = dtype or (device.for_quantised(device_name) if bits else device.best(device_name)).dtype
    loaded = load_base(
        source,
        device=device_name,
        dtype=dtype,
        bits=bits if is_adapter else None,
        offline=settings.hf_offline,
    )
    if not is_adapter:
        return loaded
    return Loaded(adapters.load(loaded.model, folder, loaded.compute.device), loaded.processor, source, loaded.compute)


def _config(source: ModelSource, offline: bool) -> PretrainedConfig:
    folder = Path(source.location)
    if source.origin is Origin.BUILT_IN:
        demo_model.ensure(folder)
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
        if is_disk_full(error):
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
