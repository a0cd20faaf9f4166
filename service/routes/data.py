"""Datasets: upload an export, convert, check and split it, or all at once. Each is a job; the answer is its result."""

from dataclasses import dataclass
from typing import Any

from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema

from jobs.paths import DataRoot
from jobs.results import ConvertResult, PrepareResult, SplitResult, ValidateResult
from jobs.settings import Settings
from jobs.specs import ConvertSpec, SplitSpec, ValidateSpec
from service import preparing, uploads, waiting
from service.answers import Accepted, Uploaded
from service.dispatch import Dispatch
from service.problems import documented
from service.recorder import Recorder

_TAGS = ["data"]
_RESPONSES = documented(404, 409, 422, 503) | {
    202: ResponseSpec(Accepted, description="The job runs on; its address tells how it goes", generate_examples=False)
}


def _form(**further: Schema) -> Schema:
    """The schema of a form with a file."""
    file = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description="A ZIP archive.")
    return Schema(type=OpenAPIType.OBJECT, properties={"file": file, **further}, required=["file"])


@dataclass
class _UploadOperation(Operation):
    """Tells the schema about the form, which the handler reads as a stream."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody({"multipart/form-data": OpenAPIMediaType(schema=_form())}, required=True)


@dataclass
class _PrepareOperation(Operation):
    """Tells the schema about both kinds of body, which the handler tells apart."""

    def __post_init__(self) -> None:
        text = "What differs from the defaults, as JSON: the fields of a prepare job without sam2_zip_path."
        form = _form(options=Schema(type=OpenAPIType.STRING, description=text))
        body = Schema(type=OpenAPIType.OBJECT, description="The fields of a prepare job: /api/schemas/prepare.")
        content = {
            "application/json": OpenAPIMediaType(schema=body),
            "multipart/form-data": OpenAPIMediaType(schema=form),
        }
        self.request_body = RequestBody(content, required=True)


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
    path, _ = await uploads.receive(request.headers.get("content-type", ""), request.stream(), root, settings)
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


@post(
    "/data/prepare",
    operation_class=_PrepareOperation,
    status_code=200,
    tags=_TAGS,
    responses=_RESPONSES | documented(400, 413, 507),
    request_max_body_size=None,
)
async def prepare(
    request: Request[Any, Any, Any], dispatch: Dispatch, recorder: Recorder, root: DataRoot, settings: Settings
) -> Response[PrepareResult]:
    """Convert an export, check the dataset and divide it, as one job.

    As JSON it names an export that was uploaded; a form brings the export itself as `file`, and what differs from the
    defaults as `options`.
    """
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        return await waiting.run(request, dispatch, preparing.spec_of_body(await request.body()), settings)
    async with preparing.received(content_type, request.stream(), root, settings, recorder.live.values()) as spec:
        return await waiting.run(request, dispatch, spec, settings)
