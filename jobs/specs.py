"""What a client may ask for: one frozen struct a kind, with its limits. The spec of a job never changes.

The structs are the bodies of the REST routes as well, so the contract's field names are used. Adding a kind: a
struct here with its tag, its result in `results.py`, a file in `gpu_runner/recipes/`, one registry line, one test.
"""

from enum import StrEnum
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from jobs.errors import BadRatios

ClientPath = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S", description="Name below the data root.")]
ModelName = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=r"\S", description="Registry name, local folder or hub repository.")
]
Tag = Annotated[str, Meta(min_length=1, max_length=100)]
Title = Annotated[str, Meta(min_length=1, max_length=200)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
JobId = Annotated[str, Meta(min_length=1, max_length=64)]
WantedDevice = Literal["auto", "cpu", "cuda"]

MAX_LENGTH_LIMIT = 32768


class DataFormat(StrEnum):
    """How a dataset lies on disk."""

    LLAVA = "llava"  # llava_dataset.jsonl, one conversation a line, images beside it
    HUGGINGFACE = "huggingface"  # an Arrow folder for datasets.load_from_disk
    COCO = "coco"  # instances JSON


class TargetTask(StrEnum):
    """What the model is to answer when it sees a frame."""

    DESCRIBE = "describe"  # counts and boxes in a sentence
    DETECT = "detect"  # JSON list of label + box normalised to 0..1000
    CLASSIFY = "classify"  # the labels alone


class MaskOrder(StrEnum):
    """The direction in which run lengths count pixels."""

    AUTO = "auto"  # found out from boxes and connectedness; the result says which and why
    ROW = "row"
    COLUMN = "column"


class SplitStrategy(StrEnum):
    STRATIFIED = "stratified"  # every class keeps its share in every split
    TEMPORAL = "temporal"  # no video in two splits, or segments with a guard gap
    RANDOM = "random"


class ExportFormat(StrEnum):
    HUGGINGFACE = "huggingface"  # a folder for from_pretrained, adapters merged
    LORA_ADAPTER = "lora_adapter"  # a folder for peft
    ONNX = "onnx"
    TFLITE = "tflite"


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of all specs."""


class ConvertSpec(Spec, frozen=True, kw_only=True, tag="convert"):
    """Turn a SAM2 export into a dataset folder."""

    sam2_zip_path: ClientPath
    output_dir: ClientPath
    target_format: DataFormat = DataFormat.LLAVA
    task: TargetTask = TargetTask.DESCRIBE
    mask_order: MaskOrder = MaskOrder.AUTO
    keep_empty_frames: bool = False
    seed: Seed = 42


class ValidateSpec(Spec, frozen=True, kw_only=True, tag="validate"):
    """Check every row of a dataset."""

    data_path: ClientPath
    format_type: DataFormat = DataFormat.LLAVA
    level: Literal["basic", "strict"] = "basic"


class SplitSpec(Spec, frozen=True, kw_only=True, tag="split"):
    """Divide a dataset into train, val and test.

    The ratios must add up to 1 within 0.001 (`BadRatios`, checked by the route: 400, not 422).
    """

    data_path: ClientPath
    output_dir: ClientPath
    strategy: SplitStrategy = SplitStrategy.STRATIFIED
    train_ratio: Annotated[float, Meta(ge=0.1, le=0.9)] = 0.8
    val_ratio: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.1
    test_ratio: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.1
    random_seed: Seed = 42

    def check_ratios(self) -> None:
        total = self.train_ratio + self.val_ratio + self.test_ratio
        if abs(total - 1) > 0.001:
            raise BadRatios(f"train_ratio + val_ratio + test_ratio is {total:g}; the three must add up to 1.")


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to fine-tune. `fp16` and `bf16` null mean: what the device does best."""

    model_name: ModelName
    train_data_path: ClientPath
    val_data_path: ClientPath | None = None
    output_dir: Annotated[ClientPath | None, Meta(description="A label; files go to the job's own folder.")] = None
    use_lora: bool = True
    lora_rank: Annotated[int, Meta(ge=1, le=256)] = 8
    lora_alpha: Annotated[int, Meta(ge=1, le=1024)] = 16
    lora_dropout: Annotated[float, Meta(ge=0, le=0.5)] = 0.05
    use_qlora: Annotated[bool, Meta(description="4-bit NF4 base with LoRA adapters; implies use_lora.")] = False
    num_epochs: Annotated[int, Meta(ge=1, le=100)] = 3
    max_steps: Annotated[int, Meta(ge=1, le=10_000_000, description="Ends the run early.")] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=128)] = 4
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=128)] = 4
    learning_rate: Annotated[float, Meta(ge=1e-6, le=1e-2)] = 2e-4
    warmup_ratio: Annotated[float, Meta(ge=0, le=0.5)] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    max_length: Annotated[int, Meta(ge=128, le=MAX_LENGTH_LIMIT)] = 2048
    fp16: bool | None = None
    bf16: bool | None = None
    device: WantedDevice = "auto"
    seed: Seed = 42
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    save_steps: Annotated[int, Meta(ge=1, le=10_000_000)] = 100
    eval_steps: Annotated[int, Meta(ge=1, le=10_000_000)] = 100
    logging_steps: Annotated[int, Meta(ge=1, le=10_000_000)] = 10
    save_total_limit: Annotated[int, Meta(ge=1, le=10)] = 3
    allow_invalid_data: bool = False
    continue_from: Annotated[
        JobId | None, Meta(description="Begin with the weights another finetune job ended with.")
    ] = None

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 cannot both be true; leave both out to take what the device does best")

    @property
    def method(self) -> Literal["full", "lora", "qlora"]:
        if self.use_qlora:
            return "qlora"
        return "lora" if self.use_lora else "full"


class FinetuneSpec(Spec, frozen=True, kw_only=True, tag="finetune"):
    """Fine-tune a model on a dataset."""

    config: TrainingConfig
    experiment_name: Title | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=50)] = ()


class EvaluateSpec(Spec, frozen=True, kw_only=True, tag="evaluate"):
    """Score a trained model on rows it may not have seen.

    Exactly one of `job_id` (a completed finetune job), `export_id` and `model_name` says which model.
    """

    data_path: ClientPath
    job_id: JobId | None = None
    export_id: JobId | None = None
    model_name: ModelName | None = None
    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    grey_images: Annotated[
        bool, Meta(description="Replace every picture by plain grey: shows what guessing scores.")
    ] = False
    max_new_tokens: Annotated[int, Meta(ge=1, le=4096)] = 64
    max_length: Annotated[int, Meta(ge=128, le=MAX_LENGTH_LIMIT)] = 2048
    device: WantedDevice = "auto"

    def __post_init__(self) -> None:
        _one_model(self)


class GenerateSpec(Spec, frozen=True, kw_only=True, tag="generate"):
    """Let a trained model answer rows of a dataset; the model is named as in `EvaluateSpec`."""

    data_path: ClientPath
    rows: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...], Meta(max_length=100)] = ()
    first_rows: Annotated[int, Meta(ge=1, le=100, description="How many, when `rows` names none.")] = 3
    job_id: JobId | None = None
    export_id: JobId | None = None
    model_name: ModelName | None = None
    max_new_tokens: Annotated[int, Meta(ge=1, le=4096)] = 64
    device: WantedDevice = "auto"

    def __post_init__(self) -> None:
        _one_model(self)


class ExportSpec(Spec, frozen=True, kw_only=True, tag="export"):
    """Turn a completed finetune job into a folder others can load. The export's id is the export job's id."""

    job_id: JobId
    export_format: ExportFormat
    output_dir: Annotated[ClientPath | None, Meta(description="A label; files go to the export's own folder.")] = None
    generate_model_card: bool = True
    merge_adapters: bool = False


JobSpec = ConvertSpec | ValidateSpec | SplitSpec | FinetuneSpec | EvaluateSpec | GenerateSpec | ExportSpec


class Kind(StrEnum):
    """The kinds of job: the tags of the specs."""

    CONVERT = "convert"
    VALIDATE = "validate"
    SPLIT = "split"
    FINETUNE = "finetune"
    EVALUATE = "evaluate"
    GENERATE = "generate"
    EXPORT = "export"


class Slot(StrEnum):
    """What a job occupies on a device."""

    CPU = "cpu"  # data work
    GPU = "gpu"  # work with a model: on a GPU, or on the CPU of a runner without one


_MODEL_KINDS = {Kind.FINETUNE, Kind.EVALUATE, Kind.GENERATE}


_KINDS = {spec: Kind(str(spec.__struct_config__.tag)) for spec in get_args(JobSpec)}  # asked for each job that waits


def kind_of(spec: Spec) -> Kind:
    return _KINDS[type(spec)]


def slot_of(spec: Spec) -> Slot:
    return Slot.GPU if kind_of(spec) in _MODEL_KINDS else Slot.CPU


def _one_model(spec: EvaluateSpec | GenerateSpec) -> None:
    named = [field for field in (spec.job_id, spec.export_id, spec.model_name) if field is not None]
    if len(named) != 1:
        raise ValueError("give exactly one of job_id, export_id and model_name")
