"""What is no API: the root's greeting, the two API pages with their assets, the schema, and the page below /ui/.

Everything comes from this host. The API pages need inline styles and a worker, so they have a policy of their own.
"""

import mimetypes
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.config.compression import CompressionConfig
from litestar.datastructures import CacheControlHeader
from litestar.middleware import DefineMiddleware
from litestar.middleware.compression import CompressionMiddleware
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler

from service import problems

SERVICE = "training-api"

_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Training API</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">{styles}'
    '</head><body><div id="page"></div>{scripts}</body></html>'
)
_SWAGGER = _PAGE.format(
    styles='<link rel="stylesheet" href="/docs/assets/swagger-ui.css">',
    scripts='<script src="/docs/assets/swagger-ui-bundle.js"></script><script src="/docs/swagger.js"></script>',
)
_REDOC = _PAGE.format(
    styles="", scripts='<script src="/docs/redoc-bundle.js"></script><script src="/docs/redoc.js"></script>'
)
_SWAGGER_START = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true});\n'
_REDOC_START = 'Redoc.init("/openapi.json", {}, document.getElementById("page"));\n'
_REDOC_LOGO = (b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"/docs/assets/logo-mini.svg")


_PACKED = DefineMiddleware(CompressionMiddleware, config=CompressionConfig(backend="gzip", gzip_compress_level=6))
"""For the page's files only: answers of the API are small, and packing the large bundles would hold the loop."""


def program_version() -> str:
    try:
        return version(SERVICE)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    service: str
    version: str


@get("/", tags=["health"])
async def root() -> Greeting:
    """What answers here."""
    return Greeting(status="healthy", service=SERVICE, version=program_version())


@get("/docs", include_in_schema=False)
async def swagger() -> Response[str]:
    return _html(_SWAGGER)


@get("/redoc", include_in_schema=False)
async def redoc() -> Response[str]:
    return _html(_REDOC)


@get("/docs/swagger.js", include_in_schema=False, media_type="text/javascript")
async def swagger_start() -> str:
    return _SWAGGER_START


@get("/docs/redoc.js", include_in_schema=False, media_type="text/javascript")
async def redoc_start() -> str:
    return _REDOC_START


@get("/docs/redoc-bundle.js", include_in_schema=False, media_type="text/javascript", sync_to_thread=True)
def redoc_bundle() -> bytes:
    """ReDoc, whose foot would ask a foreign host for its logo."""
    return (_assets("redoc") / "redoc.standalone.js").read_bytes().replace(*_REDOC_LOGO)


@get("/openapi.json", include_in_schema=False, sync_to_thread=True)
def schema(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The OpenAPI schema, without the framework's own error shape, which is never sent."""
    described = request.app.openapi_schema.to_schema()
    for operations in described["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            operation["responses"] = {
                status: answers[status] for status in answers if _is_ours(status, answers[status])
            }
    return described


def handlers() -> list[ControllerRouterHandler]:
    """All of the above, and the static files."""
    assets = create_static_files_router(
        "/docs/assets", [_assets("swagger_ui"), _assets("redoc")], include_in_schema=False
    )
    mimetypes.add_type("text/javascript", ".js")  # hosts may map it otherwise, and then no browser runs a module
    page = create_static_files_router(
        "/ui",
        [_page_folder()],
        html_mode=True,
        include_in_schema=False,
        cache_control=CacheControlHeader(no_cache=True),
        middleware=[_PACKED],
    )
    return [root, swagger, redoc, swagger_start, redoc_start, redoc_bundle, schema, assets, page]


def _is_ours(status: str, described: dict[str, Any]) -> bool:
    return status < "400" or problems.MEDIA_TYPE in described.get("content", {})


def _html(text: str) -> Response[str]:
    return Response(text, media_type="text/html", headers={"content-security-policy": _POLICY})


def _assets(bundle: str) -> Path:
    """The folder of a bundle, without importing it."""
    package = find_spec("openapi_ui_bundles")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("openapi-ui-bundles is not installed")
    return Path(package.origin).parent / bundle / "vendor"


def _page_folder() -> Path:
    """The page's files: in the wheel below this package, in a checkout beside it."""
    here = Path(__file__).parent
    in_wheel = here / "_static"
    return in_wheel if in_wheel.is_dir() else here.parent / "static"
