"""What a request for a preparation asks for: a JSON body, or a form that brings the export along.

Called by `routes/data`.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import InvalidInput, TrainingError
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import PrepareSpec
from service import bodies, uploads, violations
from service.problems import InvalidBody
from service.refusal import Refusal


def spec_of_body(raw: bytes) -> PrepareSpec:
    """Raises InvalidBody."""
    try:
        return msgspec.json.decode(raw, type=PrepareSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidBody(violations.find(raw, PrepareSpec)) from None


@asynccontextmanager
async def received(
    content_type: str, chunks: AsyncIterator[bytes], root: DataRoot, settings: Settings
) -> AsyncIterator[PrepareSpec]:
    """What is to be done with the export of a form; the export goes again when that is refused.

    Raises:
        InvalidInput, InvalidBody: the body is no form with a file, or its options are wrong.
        NotAnArchive, DatasetInvalid, TooLarge, DiskFull: as `uploads.receive`.
    """
    upload = await uploads.receive(content_type, chunks, root, settings, field="options")
    try:
        yield _spec(upload.path, upload.text, root)
    except (TrainingError, InvalidBody, Refusal):  # no job knows of it
        await asyncio.to_thread(shutil.rmtree, upload.path.parent, ignore_errors=True)
        raise


def _spec(path: Path, options: bytes, root: DataRoot) -> PrepareSpec:
    given = {"output_dir": f"datasets/{path.stem}"} | _decode(options)
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
