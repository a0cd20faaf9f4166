"""What a client may ask for: one frozen struct a kind, with its limits. The spec of a job never changes.

The structs are the bodies of the REST routes as well, so the contract's field names are used. Adding a kind: a
struct here with its tag, its result in `results.py`, a file in `gpu_runner/recipes/`, one registry line, one test.
"""

from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal, get_args

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


def _field(group: str, title: str, description: str, *, advanced: bool = False, **limits: Any) -> Meta:
    """How a form shows a setting, and its limits; `advanced` ones are rarely changed."""
    extra = {"x-group": group} | ({"x-advanced": True} if advanced else {})
    shown: Meta = Meta(title=title, description=description, extra_json_schema=extra, **limits)
    return shown


_data = partial(_field, "model and data")
_method = partial(_field, "method")
_schedule = partial(_field, "schedule")
_saving = partial(_field, "saving and reporting")
_hardware = partial(_field, "hardware")

_STEPS_LIMIT = 10_000_000


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to fine-tune. `fp16` and `bf16` null mean: what the device does best."""

    model_name: Annotated[
        ModelName,
        _data("Model", "What to fine-tune: a known name, a folder below the model roots, or a hub repository."),
    ]
    train_data_path: Annotated[
        ClientPath, _data("Training data", "The rows to learn from: a dataset folder or the train.jsonl of a split.")
    ]
    val_data_path: Annotated[
        ClientPath | None,
        _data("Validation data", "Rows the run is judged by and never learns from; give them to find the best step."),
    ] = None
    max_length: Annotated[
        int,
        _data(
            "Longest row",
            "Tokens of a row with its picture; raise it when answers are cut, lower it to save memory.",
            ge=128,
            le=MAX_LENGTH_LIMIT,
        ),
    ] = 2048
    continue_from: Annotated[
        JobId | None,
        _data(
            "Continue from",
            "Begin with the weights another finetune job ended with, to train them further.",
            advanced=True,
        ),
    ] = None
    allow_invalid_data: Annotated[
        bool, _data("Allow invalid data", "Train although the last validation of the data failed.", advanced=True)
    ] = False

    use_lora: Annotated[
        bool, _method("LoRA", "Train small adapters beside a frozen base; without it every weight is trained.")
    ] = True
    use_qlora: Annotated[
        bool, _method("QLoRA", "Keep the frozen base in 4 bits, with LoRA on it; for a GPU too small for LoRA alone.")
    ] = False
    lora_rank: Annotated[
        int,
        _method("LoRA rank", "Size of the adapters; raise it when the model cannot take in the task.", ge=1, le=256),
    ] = 8
    lora_alpha: Annotated[
        int,
        _method("LoRA alpha", "Weight of the adapters, usually twice the rank; change both together.", ge=1, le=1024),
    ] = 16
    lora_dropout: Annotated[
        float,
        _method(
            "LoRA dropout",
            "Share of the adapters' inputs left out at random; raise it with little data.",
            advanced=True,
            ge=0,
            le=0.5,
        ),
    ] = 0.05

    num_epochs: Annotated[
        int,
        _schedule("Epochs", "How often every row is seen; fewer when the evaluation loss rises again.", ge=1, le=100),
    ] = 3
    batch_size: Annotated[
        int,
        _schedule("Batch size", "Rows computed at once; lower it when the device runs out of memory.", ge=1, le=128),
    ] = 4
    gradient_accumulation_steps: Annotated[
        int,
        _schedule(
            "Accumulation", "Batches added up before one update; raise it as you lower the batch size.", ge=1, le=128
        ),
    ] = 4
    learning_rate: Annotated[
        float,
        _schedule(
            "Learning rate",
            "How far one update goes; lower it when the loss jumps, raise it when it hardly falls.",
            ge=1e-6,
            le=1e-2,
        ),
    ] = 2e-4
    warmup_ratio: Annotated[
        float,
        _schedule(
            "Warm-up",
            "Share of the steps in which the learning rate rises; more for short or unsteady runs.",
            ge=0,
            le=0.5,
        ),
    ] = 0.03
    max_steps: Annotated[
        Annotated[int, Meta(ge=1, le=_STEPS_LIMIT)] | None,
        _schedule("Step limit", "Ends the run early, after so many updates; for a quick trial.", advanced=True),
    ] = None
    weight_decay: Annotated[
        float,
        _schedule("Weight decay", "Pulls weights towards zero; a little helps long runs.", advanced=True, ge=0, le=1),
    ] = 0.0
    max_grad_norm: Annotated[
        float,
        _schedule(
            "Gradient limit",
            "Longer gradients are scaled down to this; lower it when the loss jumps.",
            advanced=True,
            gt=0,
            le=1000,
        ),
    ] = 1.0
    seed: Annotated[
        Seed, _schedule("Seed", "Fixes all chance; change it to see how much luck was in a result.", advanced=True)
    ] = 42

    output_dir: Annotated[
        ClientPath | None,
        _saving("Label", "A label to find the run by; files go to the job's own folder.", advanced=True),
    ] = None
    save_steps: Annotated[
        int,
        _saving("Save every", "Steps between checkpoints; fewer when interruptions are likely.", ge=1, le=_STEPS_LIMIT),
    ] = 100
    eval_steps: Annotated[
        int, _saving("Evaluate every", "Steps between evaluations; more when they take long.", ge=1, le=_STEPS_LIMIT)
    ] = 100
    logging_steps: Annotated[
        int, _saving("Report every", "Steps between points of the curves; fewer for short runs.", ge=1, le=_STEPS_LIMIT)
    ] = 10
    save_total_limit: Annotated[
        int,
        _saving(
            "Checkpoints kept", "Older ones are removed, the best one stays; lower it to save disk space.", ge=1, le=10
        ),
    ] = 3

    device: Annotated[
        WantedDevice,
        _hardware("Device", "Where it runs: auto takes a GPU where there is one, cpu never waits for one."),
    ] = "auto"
    bf16: Annotated[
        bool | None,
        _hardware("bf16", "Compute in bfloat16; leave it open to take what the device does best.", advanced=True),
    ] = None
    fp16: Annotated[
        bool | None, _hardware("fp16", "Compute in half precision; for a GPU that has no bfloat16.", advanced=True)
    ] = None
    priority: Annotated[
        int,
        _hardware(
            "Priority",
            "Higher starts first among waiting jobs; lower it for what can wait.",
            advanced=True,
            ge=-100,
            le=100,
        ),
    ] = 0

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


SPECS: dict[str, type[Spec]] = {str(spec.__struct_config__.tag): spec for spec in get_args(JobSpec)}
_KINDS = {spec: Kind(tag) for tag, spec in SPECS.items()}  # asked for each job that waits


def kind_of(spec: Spec) -> Kind:
    return _KINDS[type(spec)]


def slot_of(spec: Spec) -> Slot:
    return Slot.GPU if kind_of(spec) in _MODEL_KINDS else Slot.CPU


def _one_model(spec: EvaluateSpec | GenerateSpec) -> None:
    named = [field for field in (spec.job_id, spec.export_id, spec.model_name) if field is not None]
    if len(named) != 1:
        raise ValueError("give exactly one of job_id, export_id and model_name")
