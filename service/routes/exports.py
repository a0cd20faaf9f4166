"""Exports: make one from a completed training, find it, download it, remove it.

The path parameter is `job_id` everywhere, because an export's id is the id of the job that made it.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from litestar.response import Stream

from jobs.errors import FileMissing, InvalidInput, UnknownExport
from jobs.paths import DataRoot
from jobs.results import ExportResult
from jobs.settings import Settings
from jobs.specs import ExportFormat, ExportSpec
from jobs.values import ClientPath, JobId
from service import downloads, waiting
from service.answers import Accepted, Done
from service.dispatch import Dispatch
from service.downloads import DownloadInfo, ExportList
from service.links import Links
from service.problems import documented
from service.recorder import Recorder
from service.store import Store

_TAGS = ["export"]
_RESPONSES = documented(400, 404, 422, 501, 503) | {
    202: ResponseSpec(Accepted, description="The job runs on; its address tells how it goes", generate_examples=False)
}


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to make of a training. `job_id`, if given, repeats the one in the address."""

    export_format: ExportFormat
    job_id: JobId | None = None
    output_dir: ClientPath | None = None
    generate_model_card: bool = True
    merge_adapters: bool = False


@post("/export/{job_id:str}", status_code=200, tags=_TAGS, responses=_RESPONSES)
async def export(
    job_id: str, data: ExportRequest, request: Request[Any, Any, Any], dispatch: Dispatch, settings: Settings
) -> Response[ExportResult]:
    """Export a completed training and wait until the export is verified."""
    if data.job_id not in (None, job_id):
        raise InvalidInput("job_id in the body is not the one in the address", path="job_id")
    spec = ExportSpec(
        job_id=job_id,
        export_format=data.export_format,
        output_dir=data.output_dir,
        generate_model_card=data.generate_model_card,
        merge_adapters=data.merge_adapters,
    )
    return await waiting.run(request, dispatch, spec, settings)


@get("/export/{job_id:str}/download", tags=_TAGS, responses=documented(404))
async def download_info(
    job_id: str, request: Request[Any, Any, Any], recorder: Recorder, store: Store, links: Links
) -> DownloadInfo:
    """Where the newest export of a training is had."""
    await recorder.known(job_id)
    exports, prefix = await store.exports(job_id), waiting.prefix_of(request)
    if not exports:
        raise UnknownExport(f"Job {job_id} has no export yet: make one with POST {prefix}/export/{job_id}.")
    return downloads.info(exports[0], links.make(prefix, exports[0].export_id))


@get(
    "/export/download_file/{job_id:str}",
    tags=_TAGS,
    media_type="application/zip",
    responses=documented(404, 410)
    | {
        206: ResponseSpec(
            bytes, description="The part that `Range` asked for", media_type="application/zip", generate_examples=False
        )
    },
)
async def download_file(
    job_id: str,
    store: Store,
    root: DataRoot,
    links: Links,
    expires: Annotated[int | None, Parameter(ge=0, le=2**53)] = None,
    signature: Annotated[str | None, Parameter(max_length=64)] = None,
    byte_range: Annotated[str | None, Parameter(header="range")] = None,
    if_range: Annotated[str | None, Parameter(header="if-range")] = None,
) -> Stream:
    """The ZIP of an export: the model and its card."""
    links.check(job_id, expires, signature)
    record = await store.export(job_id)
    if record is None:
        raise UnknownExport
    path = _archive(root, record.archive_path)
    return downloads.answer_file(path, record.archive_sha256, byte_range, if_range)


@get("/export/list", tags=_TAGS)
async def list_exports(request: Request[Any, Any, Any], store: Store, links: Links) -> ExportList:
    """All exports, newest first."""
    prefix = waiting.prefix_of(request)
    rows = tuple(downloads.row(record, links.make(prefix, record.export_id)) for record in await store.exports())
    return ExportList(exports=rows, total=len(rows))


@delete("/export/{job_id:str}", status_code=200, tags=_TAGS, responses=documented(404))
async def delete_export(job_id: str, dispatch: Dispatch) -> Done:
    """Remove an export's files; the training stays."""
    await dispatch.delete_export(job_id)
    return Done(success=True, message=f"Export {job_id} is removed.")


def _archive(root: DataRoot, name: str) -> Path:
    """The export's file, confined like a client's path."""
    try:
        return root.path_of(root.confine_existing(name))
    except FileMissing:
        raise UnknownExport("The export's archive is no longer on the disk: export the training again.") from None
