"""Datasets to look at: which there are, all of one, its rows and pictures, and the reports of its checks."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, get
from litestar.params import Parameter

from jobs.errors import InvalidInput, UnknownReport
from jobs.paths import DataRoot
from jobs.specs import Kind
from jobs.values import MAX_PICTURE_BYTES
from service import datasets, pictures, provenance, waiting
from service.datasets import DatasetList
from service.problems import documented
from service.provenance import DatasetDetail
from service.recorder import Recorder
from service.rows import RowFiles, RowPage
from service.store import Store

_TAGS = ["data"]
_CHECKING = (Kind.VALIDATE, Kind.PREPARE)  # the kinds of job that write a report

_LAST = 2**63 - 1
DataPath = Annotated[str, Parameter(min_length=1, max_length=1024, description="A dataset, or a file of a split.")]


@get("/data/datasets", tags=_TAGS)
async def list_datasets(store: Store, root: DataRoot) -> DatasetList:
    """The datasets there are, newest first, each with its last validation."""
    return await datasets.all_of(store, root)


@get("/data/datasets/{name:path}", tags=_TAGS, responses=documented(404))
async def get_dataset(request: Request[Any, Any, Any], name: str, store: Store, root: DataRoot) -> DatasetDetail:
    """All that is known of a dataset: counts, where it comes from, its reports, how it is divided."""
    return await provenance.detail(store, root, name, waiting.prefix_of(request))


@get("/data/rows", tags=_TAGS, responses=documented(404, 422), sync_to_thread=True)
def get_rows(
    request: Request[Any, Any, Any],
    row_files: RowFiles,
    data_path: DataPath,
    after: Annotated[int, Parameter(ge=0, le=_LAST, description="How many rows to pass over.")] = 0,
    limit: Annotated[int, Parameter(ge=1, le=200)] = 50,
    row_id: Annotated[
        str | None, Parameter(min_length=1, max_length=512, description="Begin with the row of this id; none: no rows.")
    ] = None,
) -> Response[RowPage]:
    """Rows of a dataset or of a part of a split, with boxes, masks and where their pictures are had."""
    begin = after if row_id is None else row_files.find(data_path, row_id)
    page = row_files.page(data_path, _LAST if begin is None else begin, limit, waiting.prefix_of(request))
    return Response(msgspec.json.encode(page), media_type="application/json")  # type: ignore[arg-type]  # encoded here, in the thread


@get("/data/image", tags=_TAGS, responses=documented(404, 422), media_type="image/png", sync_to_thread=True)
def get_image(
    root: DataRoot,
    path: Annotated[
        str, Parameter(min_length=1, max_length=1024, description="Name of a picture below the data root.")
    ],
    offset: Annotated[
        int | None, Parameter(ge=0, le=_LAST, description="Of a picture inside an .arrow file: its first byte.")
    ] = None,
    bytes: Annotated[  # noqa: A002  # errors name the parameter
        int | None, Parameter(ge=1, le=MAX_PICTURE_BYTES, description="And how many it has.")
    ] = None,
    if_none_match: Annotated[str | None, Parameter(header="if-none-match")] = None,
) -> Response[bytes]:
    """A picture of a dataset: PNG, JPEG or WebP."""
    if (offset is None) is not (bytes is None):
        raise InvalidInput("offset and bytes belong together", path="bytes" if bytes is None else "offset")
    part = None if offset is None or bytes is None else range(offset, offset + bytes)
    return pictures.answer(root, path, part, if_none_match)


@get(
    "/data/download_validation_report/{report_id:str}",
    tags=_TAGS,
    responses=documented(404, 422),
    media_type="text/markdown",
)
async def download_validation_report(
    report_id: str,
    recorder: Recorder,
    root: DataRoot,
    format: Literal["markdown", "json"] = "markdown",  # noqa: A002
) -> Response[bytes]:
    """The report of a validation, or of a preparation's checks: for people, or for programs."""
    record = await recorder.job(report_id)
    if record is None or record.kind not in _CHECKING:
        raise UnknownReport
    file = await asyncio.to_thread(_newest_report, root, record.job_id, format)
    headers = {"content-disposition": f'attachment; filename="validation_report_{record.job_id}{file.suffix}"'}
    media_type = "application/json" if format == "json" else "text/markdown"
    return Response(await asyncio.to_thread(file.read_bytes), headers=headers, media_type=media_type)


def _newest_report(root: DataRoot, job_id: str, as_: str) -> Path:
    for attempt in root.attempts(job_id):
        file = attempt.report_data if as_ == "json" else attempt.report
        if file.is_file():
            return file
    raise UnknownReport
