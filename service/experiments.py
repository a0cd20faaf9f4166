"""A finetune job seen as an experiment: its summary, detail, metric columns and comparison. `experiment_id == job_id`.

Called by `routes/experiments`. Field names are the contract's.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from jobs.lifecycle import Status
from jobs.results import FinetuneResult
from jobs.specs import FinetuneSpec
from jobs.training_config import TrainingConfig
from jobs.values import JobId
from service.answers import Answer
from service.records import CheckpointRecord, JobRecord
from service.store import Series

_ALWAYS = ("train_loss", "eval_loss", "learning_rate")
Columns = dict[str, list[float | None]]


class Summary(Answer, frozen=True, kw_only=True):
    """One line of the list of experiments."""

    experiment_id: str
    experiment_name: str | None
    job_id: str
    status: Status
    model_name: str
    best_eval_loss: float | None
    best_eval_accuracy: float | None
    final_train_loss: float | None
    num_epochs: int
    batch_size: int
    learning_rate: float
    use_lora: bool
    use_qlora: bool
    created_at: datetime
    completed_at: datetime | None
    duration_seconds: float | None
    tags: tuple[str, ...]


class Checkpoint(Answer, frozen=True, kw_only=True):
    """A checkpoint that is on the disk; `path` is a name below the data root."""

    step: int
    path: str
    size_mb: float
    metrics: dict[str, float]
    created_at: datetime


class Detail(Answer, frozen=True, kw_only=True):
    """Everything of one experiment. `metrics_history` has the same columns as its metrics route."""

    experiment_id: str
    experiment_name: str | None
    job_id: str
    status: Status
    model_name: str
    config: TrainingConfig
    metrics_history: Columns
    checkpoints: tuple[Checkpoint, ...]
    best_checkpoint_path: str | None
    gpu_type: str | None
    peak_memory_mb: float | None
    created_at: datetime
    completed_at: datetime | None
    duration_seconds: float | None
    tags: tuple[str, ...]
    notes: tuple[str, ...]


class Metrics(Answer, frozen=True, kw_only=True):
    """Parallel lists of one length, a row a step in `steps`, null where a series has no value there.

    `not_finite` are the steps where a series was logged and its value was no finite number, such as NaN.
    """

    experiment_id: str
    metrics: Columns
    not_finite: dict[str, list[int]]
    current_epoch: int | None
    total_epochs: int | None


class Metric(StrEnum):
    """What experiments can be compared by."""

    EVAL_LOSS = "eval_loss"
    BEST_EVAL_LOSS = "best_eval_loss"
    TRAIN_LOSS = "train_loss"
    FINAL_TRAIN_LOSS = "final_train_loss"
    EVAL_ACCURACY = "eval_accuracy"
    BEST_EVAL_ACCURACY = "best_eval_accuracy"
    EVAL_EXACT_MATCH = "eval_exact_match"
    EVAL_JSON_VALIDITY = "eval_json_validity"
    EVAL_BOX_IOU = "eval_box_iou"
    EVAL_BOX_IOU_50 = "eval_box_iou_50"
    LEARNING_RATE = "learning_rate"
    NUM_EPOCHS = "num_epochs"
    BATCH_SIZE = "batch_size"
    GRADIENT_ACCUMULATION_STEPS = "gradient_accumulation_steps"
    LORA_RANK = "lora_rank"
    LORA_ALPHA = "lora_alpha"
    MAX_LENGTH = "max_length"
    TOTAL_STEPS = "total_steps"
    PEAK_MEMORY_MB = "peak_memory_mb"
    DURATION = "duration"
    DURATION_SECONDS = "duration_seconds"


class CompareRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which experiments to put side by side, and by what."""

    experiment_ids: Annotated[tuple[JobId, ...], Meta(min_length=2, max_length=10)]
    metrics: Annotated[tuple[Metric, ...], Meta(min_length=1, max_length=len(Metric))] = (
        Metric.EVAL_LOSS,
        Metric.TRAIN_LOSS,
    )

    def __post_init__(self) -> None:
        if len(set(self.experiment_ids)) != len(self.experiment_ids):
            raise ValueError("experiment_ids names the same experiment twice")


class Comparison(Answer, frozen=True, kw_only=True):
    """`comparison_table` is metric → experiment → value; the best has the lowest eval_loss."""

    experiments: tuple[Summary, ...]
    comparison_table: dict[str, dict[str, float | None]]
    best_experiment_id: str | None


def summary(record: JobRecord) -> Summary:
    spec = _spec(record)
    config = spec.config
    return Summary(
        experiment_id=record.job_id,
        experiment_name=spec.experiment_name,
        job_id=record.job_id,
        status=record.status,
        model_name=config.model_name,
        best_eval_loss=record.best_eval_loss,
        best_eval_accuracy=record.best_eval_accuracy,
        final_train_loss=_final_train_loss(record),
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        use_lora=config.method != "full",
        use_qlora=config.use_qlora,
        created_at=record.submitted_at,
        completed_at=record.completed_at,
        duration_seconds=record.duration_s,
        tags=spec.tags,
    )


def detail(record: JobRecord, series: Series, checkpoints: Sequence[CheckpointRecord]) -> Detail:
    spec = _spec(record)
    return Detail(
        experiment_id=record.job_id,
        experiment_name=spec.experiment_name,
        job_id=record.job_id,
        status=record.status,
        model_name=spec.config.model_name,
        config=spec.config,
        metrics_history=columns(series),
        checkpoints=tuple(map(_checkpoint, checkpoints)),
        best_checkpoint_path=_best_checkpoint_path(record, checkpoints),
        gpu_type=record.device_name,
        peak_memory_mb=_peak_memory_mb(record),
        created_at=record.submitted_at,
        completed_at=record.completed_at,
        duration_seconds=record.duration_s,
        tags=spec.tags,
        notes=record.notes,
    )


def columns(series: Series) -> Columns:
    """One list a series, all as long as `steps`, which has every step any series has a value for."""
    by_step = {name: {step: value for step, _, value in points} for name, points in series.items()}
    epochs = {step: epoch for points in series.values() for step, epoch, _ in points if epoch is not None}
    steps = sorted({step for values in by_step.values() for step in values})
    table: Columns = {name: [by_step.get(name, {}).get(step) for step in steps] for name in (*_ALWAYS, *by_step)}
    return table | {"steps": [*steps], "epochs": [epochs.get(step) for step in steps]}


def not_finite(series: Series) -> dict[str, list[int]]:
    """The steps at which a series has a value that is no finite number, by series; only those that have any."""
    steps = {name: [step for step, _, value in points if value is None] for name, points in series.items()}
    return {name: found for name, found in steps.items() if found}


def comparison(records: Sequence[JobRecord], metrics: Sequence[Metric]) -> Comparison:
    table = {metric.value: {record.job_id: _VALUES[metric](record) for record in records} for metric in metrics}
    losses = [(record.best_eval_loss, record.job_id) for record in records if record.best_eval_loss is not None]
    return Comparison(
        experiments=tuple(map(summary, records)),
        comparison_table=table,
        best_experiment_id=min(losses)[1] if losses else None,
    )


def _spec(record: JobRecord) -> FinetuneSpec:
    if not isinstance(record.spec, FinetuneSpec):
        raise TypeError(f"job {record.job_id} is no experiment")
    return record.spec


def _final_train_loss(record: JobRecord) -> float | None:
    if isinstance(record.result, FinetuneResult) and record.result.final_train_loss is not None:
        return record.result.final_train_loss
    return record.train_loss if record.has_ended else None


def _best_checkpoint_path(record: JobRecord, checkpoints: Sequence[CheckpointRecord]) -> str | None:
    if isinstance(record.result, FinetuneResult) and record.result.best_checkpoint_path:
        return record.result.best_checkpoint_path
    measured = [(each.metrics["eval_loss"], each.path) for each in checkpoints if "eval_loss" in each.metrics]
    return min(measured)[1] if measured else None


def _peak_memory_mb(record: JobRecord) -> float | None:
    return None if record.peak_memory_bytes is None else round(record.peak_memory_bytes / 2**20, 1)


def _checkpoint(record: CheckpointRecord) -> Checkpoint:
    return Checkpoint(
        step=record.step,
        path=record.path,
        size_mb=round(record.bytes / 2**20, 2),
        metrics=record.metrics,
        created_at=record.saved_at,
    )


def _of_config(field: str) -> Callable[[JobRecord], float | None]:
    def value(record: JobRecord) -> float | None:
        number: Any = getattr(_spec(record).config, field)
        return number  # type: ignore[no-any-return]

    return value


def _best_score(metric: Metric) -> Callable[[JobRecord], float | None]:
    """At the evaluation that was best, of a completed training."""

    def value(record: JobRecord) -> float | None:
        return record.result.best_scores.get(metric) if isinstance(record.result, FinetuneResult) else None

    return value


_VALUES: dict[Metric, Callable[[JobRecord], float | None]] = {
    Metric.EVAL_LOSS: lambda record: record.best_eval_loss,
    Metric.BEST_EVAL_LOSS: lambda record: record.best_eval_loss,
    Metric.TRAIN_LOSS: _final_train_loss,
    Metric.FINAL_TRAIN_LOSS: _final_train_loss,
    Metric.EVAL_ACCURACY: lambda record: record.best_eval_accuracy,
    Metric.BEST_EVAL_ACCURACY: lambda record: record.best_eval_accuracy,
    Metric.EVAL_EXACT_MATCH: _best_score(Metric.EVAL_EXACT_MATCH),
    Metric.EVAL_JSON_VALIDITY: _best_score(Metric.EVAL_JSON_VALIDITY),
    Metric.EVAL_BOX_IOU: _best_score(Metric.EVAL_BOX_IOU),
    Metric.EVAL_BOX_IOU_50: _best_score(Metric.EVAL_BOX_IOU_50),
    Metric.LEARNING_RATE: _of_config("learning_rate"),
    Metric.NUM_EPOCHS: _of_config("num_epochs"),
    Metric.BATCH_SIZE: _of_config("batch_size"),
    Metric.GRADIENT_ACCUMULATION_STEPS: _of_config("gradient_accumulation_steps"),
    Metric.LORA_RANK: _of_config("lora_rank"),
    Metric.LORA_ALPHA: _of_config("lora_alpha"),
    Metric.MAX_LENGTH: _of_config("max_length"),
    Metric.TOTAL_STEPS: lambda record: record.total_steps,
    Metric.PEAK_MEMORY_MB: _peak_memory_mb,
    Metric.DURATION: lambda record: record.duration_s,
    Metric.DURATION_SECONDS: lambda record: record.duration_s,
}
