"""One dataset: what it holds, which export it goes back to and how, what every check of it found, how it is divided.

Called by `routes/datasets`. Jobs are known to the store; what only the folder knows stands in its manifest.
"""

import asyncio
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal

import msgspec

from jobs.errors import FileMissing, PathNotAllowed, UnknownDataset
from jobs.paths import MANIFEST, DataRoot
from jobs.results import ConvertResult, SplitResult, ValidateResult
from jobs.specs import ConvertSpec, Kind, SplitSpec, ValidateSpec, ValidationLevel
from service import datasets
from service.answers import Answer
from service.datasets import Dataset
from service.records import DataStep
from service.steps import Lineage, Steps, folder_of, names_of, source_of
from service.store import Store

_MANIFEST_MAX_BYTES = 16 * 2**20  # with the names of some 500,000 videos


class Export(Answer, frozen=True, kw_only=True):
    """An export that went into a dataset, by the name of its upload.

    `mask_order` is the order that was found or declared, and `mask_order_reason` why.
    """

    sha256: str = ""
    upload: str = ""
    format: str = ""
    mask_order: str = ""
    mask_order_reason: str = ""


class Source(Export, frozen=True, kw_only=True):
    """The export a dataset goes back to: the one that was merged in last, where `sources` are several."""

    software_version: str
    videos: int | None
    options: dict[str, Any]
    sources: tuple[Export, ...]


class Origin(Answer, frozen=True, kw_only=True):
    """A step that led here: the job that took it, alone or as part of a preparation, and what it was asked for."""

    name: str
    job_id: str
    job_kind: Kind
    made_at: datetime | None
    spec: ConvertSpec | SplitSpec


class Report(Answer, frozen=True, kw_only=True):
    """A check of the dataset, or of what it was cut from. `json_url` is null for a report without data."""

    job_id: str
    job_kind: Kind
    data_path: str
    level: ValidationLevel
    checked_at: datetime | None
    result: Literal["passed", "passed_with_warnings", "failed"]
    num_errors: int
    num_warnings: int
    markdown_url: str
    json_url: str | None


class DatasetDetail(Dataset, frozen=True, kw_only=True):
    """All that is known of a dataset.

    `lineage` leads from the step that made it back to the conversion. `reports` are all since it was made, newest
    first, and `checked` is what the one that counts found. `divided` is the answer of the split, of a split;
    `splits` names what this dataset was divided into.
    """

    num_objects: int | None
    skipped_frames: int | None
    source: Source | None
    lineage: tuple[Origin, ...]
    splits: tuple[str, ...]
    reports: tuple[Report, ...]
    checked: ValidateResult | None
    divided: SplitResult | None


async def detail(store: Store, root: DataRoot, name: str, prefix: str) -> DatasetDetail:
    """Raises UnknownDataset. `prefix` is that of the addresses of reports."""
    steps = await store.newest_steps()
    folder = _confined(root, name)
    listed = datasets.summary(steps, folder)
    if listed is None or not await asyncio.to_thread(root.path_of(folder).is_dir):
        raise UnknownDataset
    lineage = steps.lineage(folder)
    made = steps.makers[folder].result
    conversion = lineage[-1][1]
    converted = _converted(conversion)
    return DatasetDetail(
        **{field: getattr(listed, field) for field in Dataset.__struct_fields__},
        num_objects=converted.num_objects if converted else None,
        skipped_frames=converted.skipped_frames if converted else None,
        source=await asyncio.to_thread(_source, root, folder_of(lineage[-1][0]), conversion),
        lineage=tuple(_origins(lineage)),
        splits=_splits(steps, folder),
        reports=await _reports(store, root, lineage, prefix),
        checked=steps.last_validation(listed.split.train_path if listed.split else folder),
        divided=made if isinstance(made, SplitResult) else None,
    )


def _converted(conversion: DataStep | None) -> ConvertResult | None:
    result = conversion.result if conversion else None
    return result if isinstance(result, ConvertResult) else None


def _confined(root: DataRoot, name: str) -> str:
    try:
        return root.confine(name.lstrip("/"))
    except PathNotAllowed:
        raise UnknownDataset from None


def _origins(lineage: Lineage) -> list[Origin]:
    return [
        Origin(
            name=folder_of(name),
            job_id=step.job.job_id,
            job_kind=step.job.kind,
            made_at=step.job.completed_at,
            spec=step.spec,
        )
        for name, step in lineage
        if step and not isinstance(step.spec, ValidateSpec)
    ]


def _splits(steps: Steps, name: str) -> tuple[str, ...]:
    sources = {made: source_of(maker) for made, maker in steps.makers.items()}
    return tuple(
        made.removeprefix("datasets/") for made, source in sources.items() if source and folder_of(source) == name
    )


# -- reports


async def _reports(store: Store, root: DataRoot, lineage: Lineage, prefix: str) -> tuple[Report, ...]:
    steps: dict[tuple[str, str], DataStep] = {}
    for ancestor, maker in lineage:
        for name in (*names_of(ancestor), *_parts(maker, ancestor)):
            for step in await store.validations(name, maker):
                steps[step.job.job_id, step.dataset] = step
    newest_first = sorted(steps.values(), key=lambda step: step.job.submitted_seq, reverse=True)
    return tuple(await asyncio.to_thread(lambda: [_report(root, step, prefix) for step in newest_first]))


def _parts(maker: DataStep | None, ancestor: str) -> tuple[str, ...]:
    """The files of a split that is looked at as a whole."""
    made = maker.result if maker else None
    is_whole = ancestor == folder_of(ancestor)
    return (made.train_path, made.val_path, made.test_path) if isinstance(made, SplitResult) and is_whole else ()


def _report(root: DataRoot, step: DataStep, prefix: str) -> Report:
    job, spec, found = step.job, step.spec, step.result
    assert isinstance(spec, ValidateSpec)
    assert isinstance(found, ValidateResult)
    url = f"{prefix}/data/download_validation_report/{job.job_id}"
    has_data = any(attempt.report_data.is_file() for attempt in root.attempts(job.job_id))
    return Report(
        job_id=job.job_id,
        job_kind=job.kind,
        data_path=spec.data_path,
        level=spec.level,
        checked_at=job.completed_at,
        result=found.result,
        num_errors=found.num_errors,
        num_warnings=found.num_warnings,
        markdown_url=url,
        json_url=f"{url}?format=json" if has_data else None,
    )


# -- the export


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What of `manifest.json` is told."""

    software_version: str = ""
    videos: tuple[str, ...] | None = None
    options: dict[str, Any] = {}
    sources: tuple[Export, ...] = ()


def _source(root: DataRoot, folder: str, conversion: DataStep | None) -> Source | None:
    """From the manifest, or where it is silent, from the conversion; None when neither is there."""
    manifest, told = _read_manifest(root, folder), _told(conversion)
    if manifest is None and told is None:
        return None
    said = manifest or _Manifest()
    newest = [*said.sources[-1:], *([told] if told else [])]
    facts = {name: next(filter(None, (getattr(each, name) for each in newest)), "") for name in _FACTS}
    return Source(
        **facts,
        software_version=said.software_version,
        videos=None if said.videos is None else len(said.videos),
        options=said.options,
        sources=said.sources,
    )


_FACTS = Export.__struct_fields__


def _told(conversion: DataStep | None) -> Export | None:
    """The export as the conversion told of it."""
    told, spec = _converted(conversion), conversion.spec if conversion else None
    if told is None or not isinstance(spec, ConvertSpec):
        return None
    return Export(
        sha256=told.source_sha256,
        upload=PurePosixPath(spec.sam2_zip_path).name,
        format=told.source_format,
        mask_order=told.mask_order,
        mask_order_reason=told.mask_order_reason,
    )


def _read_manifest(root: DataRoot, folder: str) -> _Manifest | None:
    try:
        with root.open(f"{folder}/{MANIFEST}") as file:
            text = file.read(_MANIFEST_MAX_BYTES + 1)
    except (FileMissing, PathNotAllowed):
        return None
    try:
        return msgspec.json.decode(text, type=_Manifest) if len(text) <= _MANIFEST_MAX_BYTES else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
