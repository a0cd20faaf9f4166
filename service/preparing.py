"""What a request for a preparation asks for: a JSON body, or a form that brings the export along.

Called by `routes/data`.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import InvalidInput, TrainingError
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ConvertSpec, PrepareSpec, SplitSpec, free_name
from service import bodies, uploads, violations
from service.problems import InvalidBody
from service.records import JobRecord
from service.refusal import Refusal

_given: set[str] = set()  # folders of forms that wait to be jobs: one process serves a data root


def spec_of_body(raw: bytes) -> PrepareSpec:
    """Raises InvalidBody."""
    try:
        return msgspec.json.decode(raw, type=PrepareSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidBody(violations.find(raw, PrepareSpec)) from None


@asynccontextmanager
async def received(
    content_type: str, chunks: AsyncIterator[bytes], root: DataRoot, settings: Settings, live: Iterable[JobRecord]
) -> AsyncIterator[PrepareSpec]:
    """What is to be done with the export of a form; the export goes again when that is refused.

    A dataset that was not named takes the first free name after the file: none that is there, that a job of `live`
    is making, or that another form was given and has not made a job of yet.

    Raises:
        InvalidInput, InvalidBody: the body is no form with a file, or its options are wrong.
        NotAnArchive, DatasetInvalid, TooLarge, DiskFull: as `uploads.receive`.
    """
    upload = await uploads.receive(content_type, chunks, root, settings, field="options")
    given: set[str] = set()
    try:
        spec = _spec(upload.path, upload.text, root, live)
        given = _written_by(spec) - _given
        _given.update(given)
        yield spec
    except (TrainingError, InvalidBody, Refusal):  # no job knows of it
        await asyncio.to_thread(shutil.rmtree, upload.path.parent, ignore_errors=True)
        raise
    finally:
        _given.difference_update(given)


def _written_by(spec: object) -> set[str]:
    """The dataset folders that a job of this spec writes."""
    if isinstance(spec, PrepareSpec):
        return {spec.output_dir, spec.division.output_dir}
    return {spec.output_dir} if isinstance(spec, ConvertSpec | SplitSpec) else set()


def _spec(path: Path, options: bytes, root: DataRoot, live: Iterable[JobRecord]) -> PrepareSpec:
    given = _decode(options)
    if "output_dir" not in given:
        being_made = _given.union(*(_written_by(job.spec) for job in live))
        given["output_dir"] = free_name(path.stem, lambda name: name in being_made or root.path_of(name).exists())
    if "sam2_zip_path" in given:
        raise InvalidInput("is the file of the form: leave it out", path="sam2_zip_path")
    return spec_of_body(msgspec.json.encode(given | {"sam2_zip_path": root.name_of(path)}))


def _decode(options: bytes) -> dict[str, Any]:
    if not options:
        return {}
    bodies.check_json(options)
    try:
        return msgspec.json.decode(options, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"must be a JSON object: {error}", path="options") from None
