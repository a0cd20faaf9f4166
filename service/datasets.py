"""The datasets there are: what conversions and splits made and what still lies on the disk.

Called by `routes/datasets`; `provenance` tells more of one.
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from jobs.paths import DataRoot
from jobs.results import ConvertResult, SplitResult, ValidateResult
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, SplitStrategy, TargetTask
from service.answers import Answer
from service.steps import Steps
from service.store import Store


class Split(Answer, frozen=True, kw_only=True):
    """How a dataset was divided; `source` is what it was cut from."""

    strategy: SplitStrategy
    source: str
    train_path: str
    val_path: str
    test_path: str
    train_samples: int
    val_samples: int
    test_samples: int
    guard_samples: int


class Validation(Answer, frozen=True, kw_only=True):
    """What the newest validation since the dataset was made found; of a split also that of its source."""

    job_id: str
    result: Literal["passed", "passed_with_warnings", "failed"]
    num_errors: int
    num_warnings: int
    report_id: str


class Dataset(Answer, frozen=True, kw_only=True):
    """A folder below `datasets/`.

    `job_id` made it. A split has its format, task and labels from the conversion it goes back to (null and empty when
    that was deleted), and counts all its rows, the guard's too.
    """

    name: str
    data_path: str
    kind: Literal["converted", "split"]
    job_id: str
    format: DataFormat | None
    task: TargetTask | None
    num_samples: int
    labels: dict[str, int]
    created_at: datetime
    split: Split | None
    validation: Validation | None
    warnings: tuple[str, ...]


class DatasetList(Answer, frozen=True, kw_only=True):
    """Newest first."""

    datasets: tuple[Dataset, ...]


async def all_of(store: Store, root: DataRoot) -> DatasetList:
    """Every dataset whose folder is there."""
    steps = await store.newest_steps()
    names = await asyncio.to_thread(_with_folder, root, steps.makers)
    found = [summary(steps, name) for name in names]
    return DatasetList(datasets=tuple(dataset for dataset in found if dataset))


def _with_folder(root: DataRoot, names: Iterable[str]) -> list[str]:
    return [name for name in names if root.path_of(name).is_dir()]


def summary(steps: Steps, name: str) -> Dataset | None:
    """What the list tells of a dataset; None of one that nobody made."""
    maker = steps.makers.get(name)
    if maker is None:
        return None
    made, made_at = maker.result, maker.job.completed_at
    if made_at is None or isinstance(made, ValidateResult):
        return None
    split = _split(maker.spec, made)
    conversion = steps.lineage(name)[-1][1]
    spec, converted = (conversion.spec, conversion.result) if conversion else (None, None)
    return Dataset(
        name=name.removeprefix("datasets/"),
        data_path=name,
        kind="converted" if split is None else "split",
        job_id=maker.job.job_id,
        format=spec.target_format if isinstance(spec, ConvertSpec) else None,
        task=spec.task if isinstance(spec, ConvertSpec) else None,
        num_samples=made.num_samples if isinstance(made, ConvertResult) else _rows(made),
        labels=converted.labels if isinstance(converted, ConvertResult) else {},
        created_at=made_at,
        split=split,
        validation=_validation(steps.last_validation(split.train_path if split else name)),
        warnings=made.warnings,
    )


def _split(spec: object, made: object) -> Split | None:
    if not isinstance(spec, SplitSpec) or not isinstance(made, SplitResult):
        return None
    return Split(
        strategy=spec.strategy,
        source=spec.data_path,
        train_path=made.train_path,
        val_path=made.val_path,
        test_path=made.test_path,
        train_samples=made.train_samples,
        val_samples=made.val_samples,
        test_samples=made.test_samples,
        guard_samples=made.guard_samples,
    )


def _rows(made: SplitResult) -> int:
    return made.train_samples + made.val_samples + made.test_samples + made.guard_samples


def _validation(found: ValidateResult | None) -> Validation | None:
    if found is None:
        return None
    return Validation(
        job_id=found.report_id,  # a report has the id of the job that wrote it
        result=found.result,
        num_errors=found.num_errors,
        num_warnings=found.num_warnings,
        report_id=found.report_id,
    )
