"""Every request of the client as a small value: what is sent, and how its answer is read.

`client` has two transports for them, so a verb is described once. Knows nothing of sockets.
"""

import codecs
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from jobs.errors import NotCompleted, RemoteProblem
from jobs.frames import Numbered
from jobs.lifecycle import Status
from jobs.specs import Kind

Json = dict[str, Any]
T = TypeVar("T")

PAGE = 1000
LOOK_EVERY_S = 1.0
"""How often a log that is followed is asked for."""

_READ_MAX_BYTES = 300  # of an answer that is no problem document


class Answer(NamedTuple):
    """What came back, whichever library fetched it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request; `read` makes its answer into what the caller gets."""

    method: str
    path: str
    read: Callable[[Answer], T]
    params: dict[str, str | int] = field(default_factory=dict)
    body: Json | None = None

    def outcome(self, answer: Answer) -> T:
        """What the caller gets. Raises RemoteProblem for an answer of 400 and above."""
        if answer.status >= 400:
            raise problem(answer.status, answer.body)
        try:
            return self.read(answer)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise RemoteProblem(
                f"{self.path} answers something else than this client expects: is it a training service of the same "
                "version?",
                status=answer.status,
                code="unexpected_answer",
            ) from error


def problem(status: int, body: bytes) -> RemoteProblem:
    """The error that an answer tells."""
    try:
        told = msgspec.json.decode(body)
        return RemoteProblem(told["message"], status=status, code=told.get("code", "error"))
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        text = body[:_READ_MAX_BYTES].decode("utf-8", "replace").strip()
        return RemoteProblem(text or f"The service answers with status {status}.", status=status, code="error")


def get(path: str) -> Call[Any]:
    return Call("GET", path, _json)


def post(path: str, body: Json) -> Call[Any]:
    return Call("POST", path, _json, body=body)


def submit(spec: Json) -> Call[str]:
    return Call("POST", "/api/jobs", lambda answer: str(_json(answer)["job_id"]), body=spec)


def job(job_id: str) -> Call[Json]:
    return Call("GET", _of_job(job_id), _json)


def completed(job: Json) -> Json:
    """The job, if it is completed; else raises NotCompleted."""
    if job["status"] != Status.COMPLETED:
        raise NotCompleted(job)
    return job


def jobs(kind: Kind | str | None, status: Status | str | None, limit: int, before: str | None) -> Call[list[Json]]:
    params = _given(kind=kind, status=status, limit=limit, before=before)
    return Call("GET", "/api/jobs", lambda answer: list(_json(answer)["jobs"]), params=params)


def steer(job_id: str, verb: str) -> Call[Json]:
    """`verb` is cancel, pause or resume."""
    return Call("POST", f"{_of_job(job_id)}/{verb}", _json)


class Log(NamedTuple):
    """Text that an attempt of a job printed, and the offset behind it. Another attempt's log begins at 0."""

    text: str
    offset: int
    attempt: int


def log(job_id: str, offset: int) -> Call[Log]:
    def read(answer: Answer) -> Log:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(answer.body)
        begun = len(decoder.getstate()[0])  # bytes of a character whose end is not written yet
        end = int(answer.headers["x-log-offset"]) - begun
        return Log(text, end, int(answer.headers["x-log-attempt"]))

    return Call("GET", f"{_of_job(job_id)}/log", read, params={"offset": offset})


class Page(msgspec.Struct, frozen=True):
    """Events behind a cursor, oldest first."""

    events: tuple[Numbered, ...]


def events(job_id: str, after: int) -> Call[Page]:
    def read(answer: Answer) -> Page:
        return msgspec.json.decode(answer.body, type=Page)

    return Call("GET", f"{_of_job(job_id)}/events", read, params={"after": after, "limit": PAGE})


def upload() -> Call[Json]:
    """Its body is a form, which goes out as a stream."""
    return Call("POST", "/api/data/upload", _json)


def export_link(export_id: str) -> Call[str]:
    """The address an export is had at; among all exports, because only the list has a link to each."""

    def read(answer: Answer) -> str:
        for export in _json(answer)["exports"]:
            if export["export_id"] == export_id:
                return str(export["download_url"])
        raise RemoteProblem(f"There is no export {export_id}.", status=404, code="export_not_found")

    return Call("GET", "/api/export/list", read)


def webhooks() -> Call[list[Json]]:
    return Call("GET", "/api/webhooks", lambda answer: list(_json(answer)))


def create_webhook(url: str, types: Iterable[str], tag: str | None) -> Call[Json]:
    return Call("POST", "/api/webhooks", _json, body=_given(url=url, types=list(types) or None, tag=tag))


def delete_webhook(webhook_id: str) -> Call[Json]:
    return Call("DELETE", _of_webhook(webhook_id), _json)


def ping_webhook(webhook_id: str) -> Call[Json]:
    return Call("POST", f"{_of_webhook(webhook_id)}/ping", _json)


def rotate_secret(webhook_id: str) -> Call[Json]:
    return Call("POST", f"{_of_webhook(webhook_id)}/rotate", _json)


def replay(webhook_id: str, after: int, undelivered_only: bool) -> Call[Json]:
    body: Json = {"after": after, "undelivered_only": undelivered_only}
    return Call("POST", f"{_of_webhook(webhook_id)}/replay", _json, body=body)


def deliveries(webhook_id: str, state: str | None, limit: int, before: int | None) -> Call[list[Json]]:
    def read(answer: Answer) -> list[Json]:
        return list(_json(answer)["deliveries"])

    params = _given(state=state, limit=limit, before=before)
    return Call("GET", f"{_of_webhook(webhook_id)}/deliveries", read, params=params)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _of_job(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _of_webhook(webhook_id: str) -> str:
    return f"/api/webhooks/{quote(webhook_id, safe='')}"


def _json(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)
