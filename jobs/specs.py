"""What a client may ask for: one frozen struct a kind, with its limits. The spec of a job never changes.

The structs are the bodies of the REST routes as well, so the contract's field names are used. Adding a kind: a
struct here with its tag, its result in `results.py`, a file in `gpu_runner/recipes/`, one registry line, one test.
"""

import itertools
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from jobs.errors import BadRatios
from jobs.training_config import TrainingConfig
from jobs.values import MAX_LENGTH_LIMIT, ClientPath, JobId, ModelName, Seed, Tag, Title, WantedDevice


class DataFormat(StrEnum):
    """How a dataset lies on disk."""

    LLAVA = "llava"  # llava_dataset.jsonl, one conversation a line, images beside it
    HUGGINGFACE = "huggingface"  # an Arrow folder for datasets.load_from_disk
    COCO = "coco"  # instances JSON


class TargetTask(StrEnum):
    """What the model is to answer when it sees a frame."""

    DESCRIBE = "describe"  # counts and boxes in a sentence
    DETECT = "detect"  # JSON list of label + box normalised to 0..1000
    POINT = "point"  # JSON list of label + a point inside the object, 0..1000
    POLYGON = "polygon"  # JSON list of label + the simplified outline, 0..1000
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


Ratio = Annotated[float, Meta(ge=0.05, le=0.5)]
TrainRatio = Annotated[float, Meta(ge=0.1, le=0.9)]
ValidationLevel = Literal["basic", "strict"]


class _ExportOptions(Spec, frozen=True, kw_only=True):
    """What is read, and what is made of it: of `ConvertSpec` and `PrepareSpec` alike."""

    sam2_zip_path: Annotated[ClientPath, Meta(description="The export: an uploaded ZIP, or a folder.")]
    output_dir: ClientPath
    target_format: DataFormat = DataFormat.LLAVA
    task: TargetTask = TargetTask.DESCRIBE
    model_name: Annotated[
        ModelName | None,
        Meta(description="The model that is to learn it: what is recommended is about that one. It changes no row."),
    ] = None
    mask_order: MaskOrder = MaskOrder.AUTO
    keep_empty_frames: Annotated[bool, Meta(description="Frames without an object become rows too.")] = False
    embed_images: Annotated[
        bool, Meta(description="Of huggingface: the pictures' bytes go into the table; else it names files beside it.")
    ] = True
    add_to: Annotated[
        ClientPath | None,
        Meta(description="A dataset whose rows are kept: the export is merged in by video, frame and object."),
    ] = None
    seed: Seed = 42


class ConvertSpec(_ExportOptions, frozen=True, kw_only=True, tag="convert"):
    """Turn a SAM2 export into a dataset folder."""


class ValidateSpec(Spec, frozen=True, kw_only=True, tag="validate"):
    """Check every row of a dataset."""

    data_path: ClientPath
    format_type: DataFormat = DataFormat.LLAVA
    level: ValidationLevel = "basic"


class SplitSpec(Spec, frozen=True, kw_only=True, tag="split"):
    """Divide a dataset into train, val and test.

    The ratios must add up to 1 within 0.001 (`BadRatios`, checked by the route: 400, not 422).
    """

    data_path: ClientPath
    output_dir: ClientPath
    strategy: SplitStrategy = SplitStrategy.STRATIFIED
    train_ratio: TrainRatio = 0.8
    val_ratio: Ratio = 0.1
    test_ratio: Ratio = 0.1
    random_seed: Seed = 42
    keep: Annotated[
        ClientPath | None,
        Meta(description="An earlier split: its rows stay in their parts, only rows that are new are divided."),
    ] = None

    def check_ratios(self) -> None:
        total = self.train_ratio + self.val_ratio + self.test_ratio
        if abs(total - 1) > 0.001:
            raise BadRatios(f"train_ratio + val_ratio + test_ratio is {total:g}; the three must add up to 1.")


class PrepareSpec(_ExportOptions, frozen=True, kw_only=True, tag="prepare"):
    """Convert an export, check the dataset and divide it: one job, one summary.

    A dataset that fails its checks is not divided unless `allow_invalid_data`.
    """

    level: ValidationLevel = "basic"
    strategy: SplitStrategy = SplitStrategy.TEMPORAL
    train_ratio: TrainRatio = 0.8
    val_ratio: Ratio = 0.1
    test_ratio: Ratio = 0.1
    split_dir: Annotated[ClientPath | None, Meta(description="Where the parts go: output_dir with -split behind.")] = (
        None
    )
    keep: Annotated[
        ClientPath | None, Meta(description="As of a split. With add_to: its split, unless divide_anew.")
    ] = None
    divide_anew: Annotated[
        bool, Meta(description="With add_to: rows that were tested on may be trained on, and the other way round.")
    ] = False
    allow_invalid_data: Annotated[bool, Meta(description="Divide the dataset although a check failed.")] = False

    def __post_init__(self) -> None:
        if self.divide_anew and self.keep is not None:
            raise ValueError("give keep or divide_anew, not both")

    @property
    def conversion(self) -> ConvertSpec:
        return ConvertSpec(**{name: getattr(self, name) for name in _ExportOptions.__struct_fields__})

    @property
    def validation(self) -> ValidateSpec:
        return ValidateSpec(data_path=self.output_dir, format_type=self.target_format, level=self.level)

    @property
    def division(self) -> SplitSpec:
        return SplitSpec(
            data_path=self.output_dir,
            output_dir=self.split_dir or parts_of(self.output_dir),
            strategy=self.strategy,
            train_ratio=self.train_ratio,
            val_ratio=self.val_ratio,
            test_ratio=self.test_ratio,
            random_seed=self.seed,
            keep=self.keep,
        )


class _Training(Spec, frozen=True, kw_only=True):
    """What a training is asked for with: of `FinetuneSpec` and `PlanSpec` alike."""

    config: TrainingConfig
    experiment_name: Title | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=50)] = ()


class FinetuneSpec(_Training, frozen=True, kw_only=True, tag="finetune"):
    """Fine-tune a model on a dataset."""


class PlanSpec(_Training, frozen=True, kw_only=True, tag="plan"):
    """Find out what a training would take, and start nothing. The body is that of a training."""

    probe: Annotated[
        bool, Meta(description="Run two steps on the longest rows and measure them; takes a place on a device.")
    ] = False


class PreviewSpec(Spec, frozen=True, kw_only=True, tag="preview"):
    """Show what a training would learn, piece by piece, from its first and its longest rows; no weights are loaded."""

    config: TrainingConfig
    rows: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...],
        Meta(max_length=20, description="Ids of the rows to show; none: the first and the longest."),
    ] = ()
    each: Annotated[int, Meta(ge=1, le=10, description="How many first ones, and how many longest ones.")] = 2


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


JobSpec = (
    ConvertSpec
    | ValidateSpec
    | SplitSpec
    | PrepareSpec
    | PreviewSpec
    | PlanSpec
    | FinetuneSpec
    | EvaluateSpec
    | GenerateSpec
    | ExportSpec
)


class Kind(StrEnum):
    """The kinds of job: the tags of the specs."""

    CONVERT = "convert"
    VALIDATE = "validate"
    SPLIT = "split"
    PREPARE = "prepare"
    PREVIEW = "preview"
    PLAN = "plan"
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
    if isinstance(spec, PlanSpec):
        return Slot.GPU if spec.probe else Slot.CPU
    return Slot.GPU if kind_of(spec) in _MODEL_KINDS else Slot.CPU


def parts_of(dataset: str) -> str:
    """Where the parts of a dataset go when nobody says where."""
    return f"{dataset}-split"


def free_name(stem: str, is_taken: Callable[[str], bool]) -> str:
    """A dataset of that name below datasets/; with the first number behind it where it or its parts would be taken."""
    names = itertools.chain((f"datasets/{stem}",), (f"datasets/{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not is_taken(name) and not is_taken(parts_of(name)))


def _one_model(spec: EvaluateSpec | GenerateSpec) -> None:
    named = [field for field in (spec.job_id, spec.export_id, spec.model_name) if field is not None]
    if len(named) != 1:
        raise ValueError("give exactly one of job_id, export_id and model_name")
