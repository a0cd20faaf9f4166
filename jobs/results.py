"""What a completed job answers: one frozen struct a kind. The REST routes send it as their body.

All paths are names below the data root. Field names are the contract's.
"""

from typing import Any, Literal

import msgspec

from jobs.model_shapes import ModelShape
from jobs.specs import SplitSpec

Value = str | int | float | bool | None


class Result(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of all results."""


class ConvertResult(Result, frozen=True, kw_only=True, tag="convert"):
    """`source_format` is what the export was found to be. `recommendation` says how its rows are best used."""

    output_dir: str
    num_samples: int
    message: str
    warnings: tuple[str, ...] = ()
    success: bool = True
    skipped_frames: int = 0
    num_objects: int = 0
    labels: dict[str, int] = {}
    mask_order: str = ""
    mask_order_reason: str = ""
    source_format: str = ""
    source_sha256: str = ""
    recommendation: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a validation found. `rows` are up to ten row ids."""

    rule: str
    severity: Literal["error", "warning"]
    message: str
    count: int
    rows: tuple[str, ...] = ()
    remedy: str = ""


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """`counts[k]` values lie from `edges[k]` up to `edges[k + 1]`; one edge more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class ValidateResult(Result, frozen=True, kw_only=True, tag="validate"):
    """`statistics` always has total_samples and total_checks; what can be drawn in it is a `Histogram`.

    `report_id` downloads the report, as Markdown or as JSON.
    """

    passed: bool
    result: Literal["passed", "passed_with_warnings", "failed"]
    num_errors: int
    num_warnings: int
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    statistics: dict[str, Any]
    recommendations: tuple[str, ...]
    report_id: str


class Leak(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a held-out part training as good as sees.

    `near` of the part's `rows` lie within two frames of a training frame of their video. `distances` counts rows by
    how many frames away the nearest training frame is: "1", "2", "3-5", "6-10", "11+", and "none" where the video is
    not trained on. `look_alikes` look like a training picture, whichever video that is from.
    """

    rows: int
    near: int
    near_share: float
    distances: dict[str, int]
    look_alikes: int


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """A division that leaks less: `request` is the body of the call that makes it.

    `before` and `after` are the leaks of the parts as they are and as they would be.
    """

    request: SplitSpec
    before: dict[str, Leak]
    after: dict[str, Leak]
    message: str


class SplitResult(Result, frozen=True, kw_only=True, tag="split"):
    """`class_shares` is by part and class: which share of the class's frames is in the part. `leakage` is by part.
    `kept` names the earlier split whose rows stayed in their parts.
    """

    train_path: str
    val_path: str
    test_path: str
    train_samples: int
    val_samples: int
    test_samples: int
    guard_samples: int = 0
    success: bool = True
    message: str = ""
    warnings: tuple[str, ...] = ()
    class_shares: dict[str, dict[str, float]] = {}
    leakage: dict[str, Leak] = {}
    kept: str | None = None
    repair: Repair | None = None


class PrepareResult(Result, frozen=True, kw_only=True, tag="prepare"):
    """The answers of the three steps; `split` is null when the dataset failed its checks and was not divided."""

    output_dir: str
    num_samples: int
    passed: bool
    message: str
    success: bool
    convert: ConvertResult
    validate: ValidateResult
    split: SplitResult | None = None
    warnings: tuple[str, ...] = ()


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the rows looked at, pictures included and as long as they are before max_length cuts them.

    `image_max` is of one row's pictures, `trained_max` of what a row trains. `truncated` rows are longer than
    max_length. `is_estimated`: the model's tokeniser could not be had, so text counts as four characters a token.
    """

    looked_at: int
    p50: int
    p95: int
    max: int
    mean: float
    image_max: int
    images_max: int
    trained_max: int
    truncated: int
    is_estimated: bool = False


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Real steps on the longest rows: what they took, beside what was predicted."""

    device: str
    device_name: str
    peak_memory_bytes: int
    predicted_memory_bytes: int
    tokens_per_second: float
    rows: int


class PlanResult(Result, frozen=True, kw_only=True, tag="plan"):
    """What a training would do, counted. Parameters are by part: vision, projector, language.

    `longest` is the most tokens the model was made for. What it takes on which device says `POST /api/train/plan`.
    """

    parameters: dict[str, int]
    trainable_parameters: dict[str, int]
    shape: ModelShape
    rows: int
    tokens: TokenCounts
    steps: int
    longest: int | None = None
    probe: Probe | None = None
    warnings: tuple[str, ...] = ()


class FinetuneResult(Result, frozen=True, kw_only=True, tag="finetune"):
    """`trainable_parameters` and `total_parameters` are counts by part: vision, projector, language.

    `peak_memory_bytes` and `predicted_memory_bytes`, what the peak was expected to be, uncorrected, are those of the
    first process where there are several; `tokens_per_second` is that of all. `family` is the model's.
    `best_scores` are all scores of the evaluation that was best by metric_for_best_model, by their series' names.
    """

    steps: int
    final_train_loss: float | None = None
    best_eval_loss: float | None = None
    best_eval_accuracy: float | None = None
    best_scores: dict[str, float] = {}
    checkpoint_path: str = ""
    best_checkpoint_path: str | None = None
    peak_memory_bytes: int | None = None
    predicted_memory_bytes: int | None = None
    tokens_per_second: float | None = None
    family: str = ""
    device_name: str = ""
    trainable_parameters: dict[str, int] = {}
    total_parameters: dict[str, int] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said to one row, beside what the row expects."""

    row_id: str
    image: str | None
    prompt: str
    expected: str
    predicted: str
    correct: bool | None = None


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring tokens of one sort; those of a picture have no text."""

    text: str
    tokens: int
    is_trained: bool = False
    is_image: bool = False


PreviewReason = Literal["first", "longest", "asked"]


class PreviewedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row as a training sees it: its pieces, one behind the other, are the whole row.

    `tokens_uncut` is its length before max_length, `images` are names of its pictures' files.
    """

    row_id: str
    reason: PreviewReason
    pieces: tuple[Piece, ...]
    tokens: int
    tokens_uncut: int
    trained_tokens: int
    image_tokens: int
    images: tuple[str, ...]
    is_truncated: bool


class PreviewResult(Result, frozen=True, kw_only=True, tag="preview"):
    """`truncated` of the rows that were looked at are longer than max_length; lengths are in tokens."""

    rows: tuple[PreviewedRow, ...]
    looked_at: int
    truncated: int
    longest_tokens: int
    max_length: int
    message: str


class EvaluateResult(Result, frozen=True, kw_only=True, tag="evaluate"):
    """`constant_accuracy` is what the best fixed answer would score: the floor to compare with.

    `json_validity` is the share of valid JSON where JSON is expected; `box_iou` the mean overlap of boxes and
    `box_iou_50` the share of those that overlap by half or more, where boxes are expected.
    """

    rows: int
    loss: float | None
    label_accuracy: float | None
    exact_match: float
    constant_accuracy: float | None
    json_validity: float | None = None
    box_iou: float | None = None
    box_iou_50: float | None = None
    grey_images: bool
    answers: tuple[Answer, ...] = ()


class GenerateResult(Result, frozen=True, kw_only=True, tag="generate"):
    answers: tuple[Answer, ...]


class ExportResult(Result, frozen=True, kw_only=True, tag="export"):
    """`verification` names each check of the reloaded export and its largest difference."""

    export_id: str
    job_id: str
    export_path: str
    archive_path: str
    archive_bytes: int
    archive_sha256: str
    export_format: str
    file_size_mb: float
    message: str
    success: bool = True
    model_card_path: str | None = None
    verification: dict[str, float] = {}


JobResult = (
    ConvertResult
    | ValidateResult
    | SplitResult
    | PrepareResult
    | PreviewResult
    | PlanResult
    | FinetuneResult
    | EvaluateResult
    | GenerateResult
    | ExportResult
)
