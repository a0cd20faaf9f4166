"""What a job of a kind takes, as JSON Schema: for forms that draw themselves."""

from typing import Any

import msgspec
from litestar import get
from litestar.exceptions import NotFoundException

from jobs.specs import SPECS
from service.problems import documented

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@get("/schemas/{kind:str}", tags=["jobs"], responses=documented(404))
async def get_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind's spec. In a training's config `x-group` and `x-advanced` say where a form shows it."""
    if kind not in SPECS:
        raise NotFoundException
    return {"$schema": _DIALECT} | msgspec.json.schema(SPECS[kind])
