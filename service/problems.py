"""The one HTTP error shape, `application/problem+json`, and the one table from an error to its status.

`app` registers `HANDLERS`; `access` and the routes build a problem with `problem_of` where nothing can be raised.
No answer carries a traceback or a path outside the data root. Source: RFC 9457, plus `code`, `message`, `errors`.
"""

from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import ClientException, HTTPException, SerializationException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ExceptionHandlersMap
from litestar.utils.scope.state import ScopeState

from jobs import errors
from jobs.errors import FailureReason, TrainingError
from service import violations
from service.refusal import Refusal
from service.violations import Violation

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
NOTHING_HERE = "There is nothing at this address; /docs lists what there is."

STATUS: dict[type[TrainingError], int] = {
    errors.Refused: 400,
    errors.InvalidInput: 422,
    errors.AddressNotAllowed: 422,
    errors.BadRatios: 400,
    errors.PathNotAllowed: 422,
    errors.FileMissing: 404,
    errors.NotAnArchive: 400,
    errors.TooLarge: 413,
    errors.Conflict: 409,
    errors.UnknownJob: 404,
    errors.UnknownExport: 404,
    errors.UnknownReport: 404,
    errors.UnknownDataset: 404,
    errors.UnknownWebhook: 404,
    errors.UnknownDelivery: 404,
    errors.WrongState: 400,
    errors.LinkExpired: 410,
    errors.NotSupported: 501,
    errors.Unavailable: 503,
    errors.TrainingError: 500,
}
"""An error without its own line has the status of its nearest parent."""

REASON_STATUS: dict[FailureReason, int] = {
    FailureReason.OUT_OF_MEMORY: 507,
    FailureReason.DATASET_INVALID: 422,
    FailureReason.CONFLICT: 409,
    FailureReason.MODEL_UNAVAILABLE: 424,
    FailureReason.DISK_FULL: 507,
    FailureReason.NO_CAPACITY: 507,
    FailureReason.TIMED_OUT: 504,
    FailureReason.TOO_MANY_ATTEMPTS: 500,
    FailureReason.INTERNAL: 500,
}
"""What a synchronous route answers when its job failed."""


class InvalidBody(Exception):
    """A body that a route decodes itself does not fit: all its violations at once."""

    def __init__(self, found: tuple[Violation, ...]) -> None:
        super().__init__()
        self.found = found


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every error. `code` never changes; `message` repeats `detail` for clients that show it."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    message: str
    errors: tuple[Violation, ...] = ()


def problem_of(status: int, code: str, detail: str, instance: str, found: tuple[Violation, ...] = ()) -> Problem:
    return Problem(
        type=f"urn:training-api:problem:{code}",
        title=_title(status),
        status=status,
        detail=detail,
        instance=instance,
        code=code,
        message=detail,
        errors=found,
    )


def answer(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    body = msgspec.json.encode(problem)
    return Response(body, status_code=problem.status, media_type=MEDIA_TYPE, headers=headers or {})


def of_failure(reason: FailureReason, detail: str, instance: str) -> Problem:
    """The problem a synchronous route answers with when its job failed."""
    return problem_of(REASON_STATUS[reason], reason.value, detail, instance)


def status_of(error: TrainingError) -> int:
    if isinstance(error, errors.JobFailed):
        return REASON_STATUS[error.reason]
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _on_error(request: Request[Any, Any, Any], error: TrainingError) -> Response[bytes]:
    """Any error of `jobs.errors`."""
    path = error.path if isinstance(error, errors.InvalidInput) else ""
    found = (Violation(path=path, message=error.message),) if path else ()
    code = error.reason.value if isinstance(error, errors.JobFailed) else error.code
    problem = problem_of(status_of(error), code, error.message, request.url.path, found)
    retry = {"retry-after": str(RETRY_AFTER_S)} if isinstance(error, errors.Unavailable) else None
    return answer(problem, retry)


def _on_validation(request: Request[Any, Any, Any], error: ClientException) -> Response[bytes]:
    """A body or parameter that does not fit: all its violations at once, not only the first."""
    return _answer_violations(request, _violations_of_body(request) or _violations_of_parameters(error))


def _on_invalid_body(request: Request[Any, Any, Any], error: InvalidBody) -> Response[bytes]:
    return _answer_violations(request, error.found)


def _answer_violations(request: Request[Any, Any, Any], found: tuple[Violation, ...]) -> Response[bytes]:
    detail = "; ".join(f"{each.path}: {each.message}" if each.path else each.message for each in found)
    return answer(problem_of(422, "validation_error", detail, request.url.path, found))


def _on_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """The framework's own errors: no such path, wrong method, a body that is no JSON."""
    if isinstance(error, ClientException) and isinstance(error.__cause__, SerializationException):
        return _on_validation(request, error)
    code = _title(error.status_code).lower().replace(" ", "_").replace("-", "_")
    problem = problem_of(error.status_code, code, _SENTENCES.get(error.status_code, error.detail), request.url.path)
    return answer(problem, error.headers)


def _on_refusal(request: Request[Any, Any, Any], refusal: Refusal) -> Response[bytes]:
    """What `access` would have answered, said by a route."""
    problem = problem_of(refusal.status.value, refusal.code, refusal.message, request.url.path)
    return answer(problem, refusal.headers)


def _on_anything(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """A fault of ours."""
    log.error("request.failed", method=request.method, path=request.url.path, exc_info=error)
    detail = "Something failed on our side; the service's log says what."
    return answer(problem_of(500, "internal", detail, request.url.path))


HANDLERS: ExceptionHandlersMap = {
    TrainingError: _on_error,
    ValidationException: _on_validation,
    InvalidBody: _on_invalid_body,
    HTTPException: _on_http,
    Refusal: _on_refusal,
    Exception: _on_anything,
}

_SENTENCES = {
    404: NOTHING_HERE,
    405: "This address does not take this method; the Allow header lists those it takes.",
    413: "The body is larger than this service accepts.",
}


def _violations_of_body(request: Request[Any, Any, Any]) -> tuple[Violation, ...]:
    field = getattr(request.route_handler, "parsed_data_field", None)
    if field is None:
        return ()
    raw = ScopeState.from_scope(request.scope).body
    return violations.find(raw if isinstance(raw, bytes) else b"", field.annotation)


def _violations_of_parameters(error: HTTPException) -> tuple[Violation, ...]:
    if isinstance(error.extra, list):
        return tuple(Violation(path=str(each.get("key", "")), message=str(each["message"])) for each in error.extra)
    return (Violation(path="", message=error.detail),)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """The problems a route names in the OpenAPI schema."""
    return {
        status: ResponseSpec(Problem, description=_title(status), media_type=MEDIA_TYPE, generate_examples=False)
        for status in statuses
    }
