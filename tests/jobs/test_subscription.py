"""Events over connections that end at any point: every event once, in order, whatever the service does meanwhile."""

import json
import random
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from jobs import backoff, calls, events, frames
from jobs.errors import RemoteProblem, Unreachable
from jobs.subscription import Subscription

DOWN = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INTERNAL_SERVER_ERROR)  # what a service answers on its way down
AT = "2026-01-02T03:04:05Z"


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "job_id": "j1", "attempt": 1, "at": AT} | fields


def _history(steps: int) -> list[dict[str, Any]]:
    """A training's stored events; other jobs have the numbers between."""
    said = [_event("job.started", device="cpu")]
    said += [_event("metrics.logged", step=step, values={"train_loss": 1.0}) for step in range(steps)]
    said.append(_event("job.failed", reason="internal", detail="it was made up"))
    return [{"seq": 3 * number, "event": event} for number, event in enumerate(said, 1)]


class _Moody:
    """A service that plays an agreed script, connection by connection, and afterwards behaves.

    With every connection more of the history has happened.
    """

    def __init__(self, history: list[dict[str, Any]]) -> None:
        self.history = history
        self.script: list[Any] = []
        self.status = "running"
        self.asked: list[str] = []
        self.wishes: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()

    @property
    def so_far(self) -> list[dict[str, Any]]:
        connections = sum("/ws" in path for path in self.asked)
        return self.history[: 30 * connections] if self.script else self.history

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(request.path)
        self.tokens.add(request.headers.get("authorization"))
        address = urlsplit(request.path)
        after = parse_qs(address.query).get("after", ["0"])[0]
        if address.path == "/api/jobs/j1/events":
            page = [each for each in self.so_far if each["seq"] > int(after)][: calls.PAGE]
            return _json({"events": page, "next": 0})
        if address.path == "/api/jobs/j1":
            ended = {"job_id": "j1", "kind": "finetune", "status": "failed", "failure_detail": "it was made up"}
            return _json(ended | {"last_seq": self.history[0]["seq"]})
        if self.script and isinstance(self.script[0], HTTPStatus):
            return connection.respond(self.script.pop(0), "not now\n")
        return None

    def converse(self, socket: ServerConnection) -> None:
        behave = self.script.pop(0) if self.script else _tell_all
        try:
            _send(socket, "welcome", server_time=AT, after=0)
            wish = json.loads(socket.recv())
            self.wishes.append(wish)
            after = wish.get("after", 0)
            if wish["initial"] == "snapshot":
                _send(socket, "snapshot", sub=wish["sub"], seq=after, jobs=[{"job_id": "j1", "status": self.status}])
            behave(socket, after, self.so_far)
        except ConnectionClosed:
            return


def _json(body: Any) -> Response:
    content = json.dumps(body).encode()
    headers = Headers({"content-length": str(len(content)), "connection": "close"})
    return Response(200, "OK", headers, content)


def _send(socket: ServerConnection, frame: str, **fields: Any) -> None:
    socket.send(json.dumps({"frame": frame} | fields))


def _tell(socket: ServerConnection, told: list[dict[str, Any]], after: int) -> None:
    progress = {"event": _event("job.progressed", step=1, total_steps=9, fraction=0.1)}
    to_seq = max([after, *(each["seq"] for each in told)])
    _send(socket, "events", events=[*told, progress], from_seq=after, to_seq=to_seq)


def _tell_all(socket: ServerConnection, after: int, history: list[dict[str, Any]]) -> None:
    _tell(socket, [each for each in history if each["seq"] > after], after)
    socket.recv()


def _tells_some(chance: random.Random, end: str):
    """Tells a random part of what is missing, now and then with what was told before, and ends so."""

    def behave(socket: ServerConnection, after: int, history: list[dict[str, Any]]) -> None:
        position = after
        while chance.random() < 0.7 and history[-1]["seq"] > position:
            begin = max(0, position - chance.choice([0, 0, 30]))
            told = [each for each in history if each["seq"] > begin][: chance.randint(1, 40)]
            if told:
                _tell(socket, told, begin)
                position = max(position, told[-1]["seq"])
        if chance.random() < 0.3:
            _send(socket, "bookmark", seq=position)
        _END[end](socket, position, history)

    return behave


def _skip(socket: ServerConnection, position: int, history: list[dict[str, Any]]) -> None:
    rest = [each for each in history if each["seq"] > position]
    _tell(socket, rest[2:], rest[1]["seq"] if len(rest) > 2 else position + 1)
    socket.recv()


_END: dict[str, Any] = {
    "cut": lambda socket, *_: socket.socket.close(),
    "restart": lambda socket, *_: (_send(socket, "bye", code="restarting", retry_after_s=0.01), socket.close(1012)),
    "slow": lambda socket, *_: socket.close(4008),
    "reset": lambda socket, *_: (
        _send(socket, "reset", reason="too_far_behind", snapshot_url="/api/jobs/j1"),
        socket.recv(),
    ),
    "hole": _skip,
    "normal": lambda socket, *_: socket.close(1000),
}


@pytest.fixture
def moody(monkeypatch) -> Iterator[_Moody]:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(calls, "PAGE", 9)
    service = _Moody(_history(400))
    with serve(service.converse, "127.0.0.1", 0, process_request=service.answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        service.address = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        yield service
        server.shutdown()
        thread.join()


def _stored(heard: list[Any]) -> list[int]:
    return [seq for seq, _ in heard if seq is not None]


@pytest.mark.parametrize("seed", range(8))
def test_every_event_is_heard_once_and_in_order_over_connections_that_end_at_random(moody, client_of, seed) -> None:
    chance = random.Random(seed)
    ends = [chance.choice([*_END, *DOWN]) for _ in range(12)]
    moody.script = [end if end in DOWN else _tells_some(chance, end) for end in ["cut", *ends]]
    heard = list(client_of(moody.address, "secret").events("j1"))
    assert _stored(heard) == [each["seq"] for each in moody.history]
    assert isinstance(heard[-1][1], events.JobFailed)
    assert moody.script == [], "all of it was lived through"
    assert moody.tokens == {"Bearer secret"}


@pytest.mark.parametrize("end", _END)
def test_each_way_to_end_leaves_no_gap_behind(moody, client_of, end) -> None:
    def some(socket: ServerConnection, after: int, history: list[dict[str, Any]]) -> None:
        told = [each for each in history if each["seq"] > after][:10]
        _tell(socket, told, after)
        _END[end](socket, after + 30, history)

    moody.script = [some, some]
    heard = list(client_of(moody.address).events("j1"))
    assert _stored(heard) == [each["seq"] for each in moody.history]
    assert any(isinstance(event, events.JobProgressed) for _, event in heard)
    asked = [wish["after"] for wish in moody.wishes]
    assert 30 in asked or any("after=30" in path for path in moody.asked), "it went on where it was"


def test_what_lies_behind_the_cursor_is_all_that_is_heard(moody, client_of) -> None:
    assert _stored(list(client_of(moody.address).events("j1", after=1200))) == [1203, 1206]


def test_the_events_of_a_job_that_has_ended_are_read_without_waiting(moody, client_of) -> None:
    moody.status = "failed"
    client = client_of(moody.address)
    assert _stored(list(client.events("j1"))) == [each["seq"] for each in moody.history]
    assert list(client.events("j1", after=moody.history[-1]["seq"])) == []
    socket, page = "/api/ws", "/api/jobs/j1/events"
    pages = len(moody.history) // calls.PAGE + 1
    assert [urlsplit(path).path for path in moody.asked] == [socket, *[page] * pages, socket, page], "and no bookmark"


def test_a_service_that_stays_away_is_given_up_with_every_try_told(moody, client_of) -> None:
    def cut(socket: ServerConnection, after: int, history: list[dict[str, Any]]) -> None:
        _tell(socket, history[:3], after)
        moody.script += [HTTPStatus.BAD_GATEWAY] * 1000
        socket.socket.close()

    moody.script = [cut]
    tries: list[str] = []
    client = client_of(moody.address, patience_s=0.3, on_retry=lambda error, _: tries.append(error.message))
    heard: list[Any] = []
    with pytest.raises(Unreachable):
        heard.extend([each for each in client.events("j1") if not heard.append(each)])
    assert _stored(heard) == [3, 6, 9]
    assert len(tries) >= 2


@pytest.mark.parametrize(("code", "status"), [(4400, 400), (4401, 401), (4404, 404)])
def test_a_refusal_ends_the_listening_with_the_services_own_words(moody, client_of, code, status) -> None:
    def refuse(socket: ServerConnection, *_: Any) -> None:
        _send(socket, "error", code="made_up", message="because of this")
        socket.close(code)

    moody.script = [refuse]
    with pytest.raises(RemoteProblem, match="because of this") as caught:
        list(client_of(moody.address).events("j1"))
    assert (caught.value.status, caught.value.code) == (status, "made_up")


def test_an_event_that_only_a_newer_service_knows_is_passed_over(moody, client_of) -> None:
    moody.history[5]["event"] = _event("job.levitated", height=3)
    heard = _stored(list(client_of(moody.address).events("j1")))
    assert heard == [each["seq"] for each in moody.history if each is not moody.history[5]]


def test_waiting_for_a_job_outlives_broken_connections(moody, client_of) -> None:
    moody.script = [
        _tells_some(random.Random(1), "cut"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        _tells_some(random.Random(2), "restart"),
    ]
    with pytest.raises(calls.NotCompleted, match="it was made up"):
        client_of(moody.address).wait("j1")


# -- all jobs


def test_events_of_all_jobs_begin_now_and_go_on_from_where_they_were(moody, client_of) -> None:
    def some(socket: ServerConnection, after: int, history: list[dict[str, Any]]) -> None:
        _tell(socket, [each for each in history if each["seq"] > after][:10], after)
        socket.socket.close()

    moody.script = [some, some]
    heard: list[Any] = []
    for each in client_of(moody.address).all_events(types=["job.started", "job.failed"]):
        heard.append(each)
        if isinstance(each[1], events.JobFailed):
            break
    assert _stored(heard) == [each["seq"] for each in moody.history], "a job's end ends nothing here"
    assert [wish.get("after") for wish in moody.wishes] == [None, 30, 60]
    assert moody.wishes[0] == {
        "frame": "subscribe", "sub": "1", "all": True, "types": ["job.started", "job.failed"], "initial": "none",
    }  # fmt: skip


def test_a_tag_is_asked_for_by_its_name(moody, client_of) -> None:
    next(iter(client_of(moody.address).all_events(after=0, tag="birds")))
    assert (moody.wishes[0]["tag"], "all" in moody.wishes[0], "jobs" in moody.wishes[0]) == ("birds", False, False)


def test_a_ping_is_answered(moody, client_of) -> None:
    answers: list[Any] = []

    def ask(socket: ServerConnection, after: int, history: list[dict[str, Any]]) -> None:
        _send(socket, "ping", at=AT)
        answers.append(json.loads(socket.recv()))
        _tell_all(socket, after, history)

    moody.script = [ask]
    moody.history = moody.history[:20] + moody.history[-1:]
    assert list(client_of(moody.address).events("j1"))
    assert answers == [{"frame": "pong"}]


def test_a_subscription_that_cannot_be_ends_the_listening(moody, client_of) -> None:
    def refuse(socket: ServerConnection, *_: Any) -> None:
        _send(socket, "error", sub="1", code="job_not_found", message="There is none.")
        socket.recv()

    moody.script = [refuse]
    with pytest.raises(RemoteProblem, match="There is none") as caught:
        list(client_of(moody.address).events("j1"))
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")


def test_events_of_all_jobs_that_are_lost_are_said_to_be(moody, client_of) -> None:
    moody.script = [lambda socket, after, history: _END["reset"](socket)]
    with pytest.raises(RemoteProblem, match="load the jobs anew"):
        next(iter(client_of(moody.address).all_events(after=3)))


def test_what_is_no_frame_is_said_to_be_another_version() -> None:
    with pytest.raises(RemoteProblem, match="another version"):
        Subscription("j1", 0, (), backoff.Backoff(1)).hear('{"frame": "levitation"}')
    assert frames.decode_server(b'{"frame": "bookmark", "seq": 3}') == frames.Bookmark(seq=3)
