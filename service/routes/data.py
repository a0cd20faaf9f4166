"""Datasets: upload an export, convert it, check it, split it. Each is a job; the answer is its result."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import Parameter

from jobs.errors import UnknownReport
from jobs.paths import DataRoot
from jobs.results import ConvertResult, SplitResult, ValidateResult
from jobs.settings import Settings
from jobs.specs import ConvertSpec, Kind, SplitSpec, ValidateSpec
from service import datasets, pictures, uploads, waiting
from service.answers import Accepted, Uploaded
from service.datasets import DatasetList
from service.dispatch import Dispatch
from service.problems import documented
from service.recorder import Recorder
from service.store import Store

_TAGS = ["data"]
_RESPONSES = documented(404, 409, 422, 503) | {
    202: ResponseSpec(Accepted, description="The job runs on; its address tells how it goes", generate_examples=False)
}


@dataclass
class _UploadOperation(Operation):
    """Tells the schema about the form, which the handler reads as a stream."""

    def __post_init__(self) -> None:
        file = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description="A ZIP archive.")
        form = Schema(type=OpenAPIType.OBJECT, properties={"file": file}, required=["file"])
        self.request_body = RequestBody({"multipart/form-data": OpenAPIMediaType(schema=form)}, required=True)


@post(
    "/data/upload",
    operation_class=_UploadOperation,
    status_code=200,
    tags=_TAGS,
    responses=documented(400, 413, 422, 507),
    request_max_body_size=None,
)
async def upload(request: Request[Any, Any, Any], root: DataRoot, settings: Settings) -> Uploaded:
    """Upload a SAM2 export: the field `file` of a multipart form, a ZIP archive."""
    path = await uploads.receive(request.headers.get("content-type", ""), request.stream(), root, settings)
    size_mb = round(path.stat().st_size / 2**20, 2)
    return Uploaded(
        success=True,
        file_path=root.name_of(path),
        filename=path.name,
        file_size_mb=size_mb,
        message=f"{path.name} is stored; convert it with its file_path.",
    )


@post("/data/convert", status_code=200, tags=_TAGS, responses=_RESPONSES)
async def convert(
    data: ConvertSpec, request: Request[Any, Any, Any], dispatch: Dispatch, settings: Settings
) -> Response[ConvertResult]:
    """Turn an uploaded export into a dataset; its `output_dir` is the `data_path` of the other routes."""
    return await waiting.run(request, dispatch, data, settings)


@post("/data/validate", status_code=200, tags=_TAGS, responses=_RESPONSES)
async def validate(
    data: ValidateSpec, request: Request[Any, Any, Any], dispatch: Dispatch, settings: Settings
) -> Response[ValidateResult]:
    """Check every row of a dataset."""
    return await waiting.run(request, dispatch, data, settings)


@post("/data/split", status_code=200, tags=_TAGS, responses=_RESPONSES | documented(400))
async def split(
    data: SplitSpec, request: Request[Any, Any, Any], dispatch: Dispatch, settings: Settings
) -> Response[SplitResult]:
    """Divide a dataset into train.jsonl, val.jsonl and test.jsonl."""
    return await waiting.run(request, dispatch, data, settings)


@get("/data/datasets", tags=_TAGS)
async def list_datasets(store: Store, root: DataRoot) -> DatasetList:
    """The datasets there are, newest first, each with its last validation."""
    return await datasets.all_of(store, root)


@get("/data/image", tags=_TAGS, responses=documented(404, 422), media_type="image/png", sync_to_thread=True)
def get_image(
    root: DataRoot,
    path: Annotated[
        str, Parameter(min_length=1, max_length=1024, description="Name of a picture below the data root.")
    ],
    if_none_match: Annotated[str | None, Parameter(header="if-none-match")] = None,
) -> Response[bytes]:
    """A picture of a dataset: PNG, JPEG or WebP."""
    return pictures.answer(root, path, if_none_match)


@get(
    "/data/download_validation_report/{report_id:str}",
    tags=_TAGS,
    responses=documented(404),
    media_type="text/markdown",
)
async def download_validation_report(report_id: str, recorder: Recorder, root: DataRoot) -> Response[bytes]:
    """The report of a validation as a Markdown file."""
    record = await recorder.job(report_id)
    if record is None or record.kind is not Kind.VALIDATE:
        raise UnknownReport
    text = await asyncio.to_thread(_newest_report, root, record.job_id)
    headers = {"content-disposition": f'attachment; filename="validation_report_{record.job_id}.md"'}
    return Response(text, headers=headers, media_type="text/markdown")


def _newest_report(root: DataRoot, job_id: str) -> bytes:
    for attempt in root.attempts(job_id):
        if attempt.report.is_file():
            return attempt.report.read_bytes()
    raise UnknownReport
