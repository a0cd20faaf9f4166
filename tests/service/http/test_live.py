"""Sockets and event streams: replay, then live, without gap or duplicate; and how they end."""

import asyncio
import contextlib
import itertools
import json
import socket as plain_socket
import threading
from functools import partial
from types import SimpleNamespace

import pytest
from waiting import until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from jobs import events, frames
from jobs.lifecycle import Status
from jobs.specs import Kind
from service import conversation, feed, hub, serve
from service.records import Interest
from service.routes import live

_SAID, _SAID_BYTES = 120, 100_000


def _socket(house, job_id: str, query: str = "", prefix: str = "/api"):
    return connect(f"ws://{house.address}{prefix}/train/{job_id}/ws{query}", proxy=None)


def _frame(socket) -> dict:
    frame = json.loads(socket.recv(timeout=10))
    assert frame["frame"] in {
        "welcome",
        "events",
        "bookmark",
        "reset",
        "error",
        "bye",
    }  # none of those that only a handshake brings
    return frame


def _collect(socket, until: str, times: int = 1) -> list[dict]:
    """The numbered events up to so many of a type; checks that frames follow one another without a hole."""
    seen: list[dict] = []
    position = None
    while [entry["event"]["type"] for entry in seen].count(until) < times:
        frame = _frame(socket)
        if frame["frame"] == "events":
            assert position is None or frame["from_seq"] == position
            position = frame["to_seq"]
            seen += [entry for entry in frame["events"] if "seq" in entry]
    return seen


def _logs_metrics(count: int, gate: threading.Event | None = None):
    async def train(attempt) -> None:
        await attempt.begin()
        for step in range(1, count + 1):
            if gate is not None and step == count // 2:
                await asyncio.to_thread(gate.wait, 10)
            await attempt.say(events.MetricsLogged, step=step, values={"train_loss": 1 / step})
            await attempt.progress(step, count)
        await attempt.complete()

    return train


def _start(http, dataset: str) -> str:
    config = {"model_name": "demo-llava", "train_data_path": dataset}
    return http.post("/api/train/start", json={"config": config}).json()["job_id"]


@pytest.mark.parametrize("prefix", ["/api", "/api/training"])
def test_a_socket_replays_and_goes_on_live(house, http, dataset, prefix) -> None:
    gate = threading.Event()
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(60, gate)
    job_id = _start(http, dataset)
    house.wait_for(job_id, lambda job: (job.step or 0) >= 10)
    with _socket(house, job_id, "?after=0", prefix) as socket:
        welcome = _frame(socket)
        assert (welcome["frame"], welcome["after"], welcome["status"]) == ("welcome", 0, "running")
        gate.set()
        seen = _collect(socket, "job.completed")
    stored = http.get(f"/api/jobs/{job_id}/events").json()["events"]
    assert seen == stored
    assert len([each for each in seen if each["event"]["type"] == "metrics.logged"]) == 60


def test_listeners_who_come_at_any_moment_hear_the_same(house, http, dataset) -> None:
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(300)
    job_id = _start(http, dataset)
    heard: list[list[dict]] = []

    def listen() -> None:
        with _socket(house, job_id) as socket:
            heard.append(_collect(socket, "job.completed"))

    listeners = [threading.Thread(target=listen) for _ in range(8)]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.join(20)
    stored = http.get(f"/api/jobs/{job_id}/events?limit=1000").json()["events"]
    assert heard == [stored] * 8


def test_a_socket_resumes_behind_its_cursor(house, http, trained) -> None:
    stored = http.get(f"/api/jobs/{trained}/events").json()["events"]
    with _socket(house, trained, f"?after={stored[1]['seq']}") as socket:
        assert _frame(socket)["after"] == stored[1]["seq"]
        assert _collect(socket, "job.completed") == stored[2:]


def test_frames_follow_one_another_without_a_hole_also_where_others_have_events(house, http, dataset) -> None:
    gate = threading.Event()
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(20, gate)
    job_id = _start(http, dataset)
    house.wait_for(job_id, lambda job: job.step == 9)
    http.post("/api/data/validate", json={"data_path": dataset})  # events of another job
    with _socket(house, job_id) as socket:
        assert _frame(socket)["after"] == 0
        position = 0
        while (frame := _frame(socket))["frame"] != "bookmark" or frame["seq"] == 0:  # until the replay is over
            assert frame["from_seq"] == position
            position = frame["to_seq"]
        gate.set()
        while (frame := _frame(socket))["frame"] == "bookmark":
            pass
        assert frame["from_seq"] == position


def test_a_long_log_is_replayed_in_pages(house, http, dataset, monkeypatch) -> None:
    monkeypatch.setattr(hub, "PIECE_EVENTS", 7)
    monkeypatch.setattr(feed, "WINDOW", 16)
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(50)
    job_id = _start(http, dataset)
    house.wait_for(job_id, lambda job: job.has_ended)
    with _socket(house, job_id) as socket:
        seen = _collect(socket, "job.completed")
    assert seen == http.get(f"/api/jobs/{job_id}/events").json()["events"]


def test_who_is_too_far_behind_is_told_to_load_a_snapshot(house, http, trained, monkeypatch) -> None:
    monkeypatch.setattr(feed, "TOO_FAR_BEHIND", 2)
    with _socket(house, trained) as socket:
        assert _frame(socket)["frame"] == "welcome"
        reset = _frame(socket)
    assert (reset["frame"], reset["reason"]) == ("reset", "too_far_behind")
    assert http.get(reset["snapshot_url"]).json()["job_id"] == trained


def test_a_slow_listener_goes_on_from_the_store_without_a_gap(house, http, dataset, monkeypatch) -> None:
    monkeypatch.setattr("service.hub.QUEUE_BYTES", 2_000)
    lagged: list[bool] = []
    leave = hub.Subscription.__exit__
    monkeypatch.setattr(hub.Subscription, "__exit__", lambda self, *of: lagged.append(self.lagging) or leave(self, *of))
    gate = threading.Event()
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(400, gate)
    job_id = _start(http, dataset)
    with _socket(house, job_id) as socket:
        assert _frame(socket)["frame"] == "welcome"
        gate.set()
        seen = _collect(socket, "job.completed")
    assert any(lagged), "the queue was never too long for this listener"
    assert seen == http.get(f"/api/jobs/{job_id}/events?limit=1000").json()["events"]


def test_a_quiet_socket_gets_bookmarks(house, http, trained, monkeypatch) -> None:
    monkeypatch.setattr(hub, "QUIET_S", 0.05)
    last = http.get(f"/api/jobs/{trained}").json()["last_seq"]
    with _socket(house, trained) as socket:
        while (frame := _frame(socket))["frame"] != "bookmark":
            pass
    assert frame["seq"] >= last


def test_an_unknown_job_closes_with_4404(house) -> None:
    with _socket(house, "nope") as socket:
        assert _frame(socket)["code"] == "job_not_found"
        assert _closed(socket) == frames.CLOSE_NO_SUCH_JOB


@pytest.mark.parametrize("after", ["-1", "x", "NaN", "1.5", "9" * 30, str(2**62), "%D9%A1"])
def test_a_cursor_that_can_be_none_closes_with_4400(house, trained, after) -> None:
    with _socket(house, trained, f"?after={after}") as socket:
        assert _frame(socket)["code"] == "bad_cursor"
        assert _closed(socket) == frames.CLOSE_BAD_FRAME


@pytest.mark.parametrize(
    "said", ["hello", "[" * 50_000, '{"frame": "subscribe"}', '{"frame": "bye"}', b"\x00\xff"], ids=lambda x: str(x)[:9]
)
def test_a_frame_that_is_none_closes_with_4400(house, trained, said) -> None:
    with _socket(house, trained) as socket:
        assert _frame(socket)["frame"] == "welcome"
        socket.send(said)
        assert _closed(socket) == frames.CLOSE_BAD_FRAME


def test_a_frame_that_is_too_large_closes_with_1009(house, trained) -> None:
    with _socket(house, trained) as socket:
        socket.send("x" * 200_000)
        assert _closed(socket) == 1009


def test_a_token_frame_is_taken_where_none_is_asked_for(house, trained) -> None:
    with _socket(house, trained) as socket:
        socket.send(json.dumps({"frame": "auth", "token": "any"}))
        assert _collect(socket, "job.completed")


def _everything(house, query: str = "", prefix: str = "/api"):
    return connect(f"ws://{house.address}{prefix}/ws{query}", proxy=None)


@pytest.mark.parametrize("prefix", ["/api", "/api/training"])
def test_a_socket_of_all_jobs_begins_now_unless_told_otherwise(house, http, trained, dataset, prefix) -> None:
    head = _stored(http, trained)[-1]["seq"]
    with _everything(house, "?after=now", prefix) as socket:
        welcome = _frame(socket)
        assert (welcome["frame"], welcome["after"], welcome.get("status")) == ("welcome", head, None)
        first, second = _start(http, dataset), _start(http, dataset)
        seen = _collect(socket, "job.completed", 2)
    mine = sorted([*_stored(http, first), *_stored(http, second)], key=lambda each: each["seq"])
    assert seen == mine


def test_a_socket_of_all_jobs_replays_behind_its_cursor(house, http, dataset) -> None:
    jobs = [_start(http, dataset) for _ in range(3)]
    for job_id in jobs:
        house.wait_for(job_id, lambda job: job.has_ended)
    mine = sorted((each for job_id in jobs for each in _stored(http, job_id)), key=lambda each: each["seq"])
    with _everything(house, f"?after={mine[0]['seq']}") as socket:
        assert _frame(socket)["after"] == mine[0]["seq"]
        assert _collect(socket, "job.completed", 3) == mine[1:]


def test_a_socket_of_all_jobs_can_be_narrowed_to_types(house, http, trained, dataset) -> None:
    with _everything(house, "?after=now&types=job.started,job.completed") as socket:
        assert _frame(socket)["frame"] == "welcome"
        _start(http, dataset)
        seen = _collect(socket, "job.completed")
    assert [each["event"]["type"] for each in seen] == ["job.started", "job.completed"]


def test_a_socket_of_all_jobs_refuses_a_cursor_that_can_be_none(house) -> None:
    with _everything(house, f"?after={2**62}") as socket:
        assert _frame(socket)["code"] == "bad_cursor"
        assert _closed(socket) == frames.CLOSE_BAD_FRAME


def test_a_departed_listener_is_noticed(house, trained) -> None:
    with _socket(house, trained) as socket:
        _collect(socket, "job.completed")
        assert len(house.app.state.sockets._tasks) == 1
    house.run(house.app.state.sockets.wait_for_end(5))
    assert len(house.app.state.sockets._tasks) == 0


async def _says_much(attempt, gate: threading.Event | None = None) -> None:
    """More than the buffers between here and there hold, once the gate is open."""
    await attempt.begin()
    if gate is not None:
        await asyncio.to_thread(gate.wait, 10)
    for number in range(_SAID):
        await attempt.say(events.JobNoted, message=f"{number} " + "x" * _SAID_BYTES)
    await attempt.complete()


def test_a_client_that_takes_nothing_is_dropped_without_delaying_others(house, http, dataset, monkeypatch) -> None:
    monkeypatch.setattr(conversation, "SEND_WITHIN_S", 0.2)
    monkeypatch.setattr(conversation, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(conversation, "FAREWELL_WITHIN_S", 0.2)
    gate = threading.Event()

    house.runner.scripts[Kind.FINETUNE] = partial(_says_much, gate=gate)
    job_id = _start(http, dataset)
    sockets = house.app.state.sockets
    with _deaf_socket(house, job_id) as deaf, _socket(house, job_id) as other:
        assert _frame(other)["frame"] == "welcome"
        gate.set()
        seen = _collect(other, "job.completed")
        assert len(seen) == len(_stored(http, job_id))
        until(lambda: len(sockets._tasks) == 1)
        said = b""
        while not said.endswith(b"\x88\x02" + frames.CLOSE_SLOW.to_bytes(2, "big")):  # it comes to life again
            more = deaf.recv(1 << 20)
            assert more, "it was closed without a reason"
            said = said[-4:] + more
    http.delete(f"/api/jobs/{job_id}")  # or the lists of other tests would be megabytes


def test_a_client_that_never_takes_anything_again_is_cut_off(house, http, dataset, monkeypatch) -> None:
    monkeypatch.setattr(conversation, "SEND_WITHIN_S", 0.2)
    monkeypatch.setattr(conversation, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(conversation, "FAREWELL_WITHIN_S", 0.1)
    monkeypatch.setattr(serve, "CUT_OFF_AFTER_S", 0.2)

    house.runner.scripts[Kind.FINETUNE] = _says_much
    job_id = _start(http, dataset)
    until(lambda: http.get(f"/api/jobs/{job_id}").json()["completed_at"])
    before = set(house._server.server_state.connections)
    with _deaf_socket(house, job_id):
        until(lambda: house._server.server_state.connections - before)
        opened = house._server.server_state.connections - before
        until(lambda: not opened & house._server.server_state.connections)
    http.delete(f"/api/jobs/{job_id}")


def test_a_socket_gets_little_of_the_kernels_memory(house, http, dataset) -> None:
    """By itself it grows to megabytes for a client that takes nothing, and writing there is slow."""
    job_id = _start(http, dataset)
    before = set(house._server.server_state.connections)
    with _socket(house, job_id) as socket:
        _frame(socket)
        (opened,) = house._server.server_state.connections - before
        kernels = opened.transport.get_extra_info("socket")
        assert kernels.getsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_SNDBUF) <= 2 * serve._SEND_BUFFER


def test_what_sockets_have_held_is_collected_when_many_have_left(house, monkeypatch) -> None:
    collected = threading.Event()
    monkeypatch.setattr(serve, "gc", SimpleNamespace(collect=collected.set))
    house.app.state.sockets.left += serve._LEFT
    assert collected.wait(5)


def test_an_event_stream_that_takes_nothing_is_cut_off(house, http, dataset, monkeypatch) -> None:
    monkeypatch.setattr(conversation, "SEND_WITHIN_S", 0.2)
    monkeypatch.setattr(conversation, "LOOK_EVERY_S", 0.1)

    house.runner.scripts[Kind.FINETUNE] = _says_much
    job_id = _start(http, dataset)
    until(lambda: http.get(f"/api/jobs/{job_id}").json()["completed_at"])
    before, groups = set(house._server.server_state.connections), house.app.state.hub._groups
    mine = hub.Key(Interest.of(types=frozenset({"job.noted"})))
    with _deaf_stream(house, "/api/events?types=job.noted") as deaf:
        until(lambda: mine in groups)
        opened = house._server.server_state.connections - before
        until(lambda: mine not in groups)
        until(lambda: not opened & house._server.server_state.connections)
        said = b"".join(iter(lambda: deaf.recv(1 << 20), b""))  # what the kernel had taken; the rest is gone
        assert len(said) < _SAID * _SAID_BYTES
        assert not said.endswith(b"0\r\n\r\n"), "a client must not take it for the end"
    http.delete(f"/api/jobs/{job_id}")


@pytest.mark.parametrize(("waiting", "is_cut_off"), [(itertools.count(10**6, -1), False), (itertools.repeat(5), True)])
async def test_only_who_takes_nothing_of_a_long_send_is_cut_off(monkeypatch, waiting, is_cut_off) -> None:
    monkeypatch.setattr(conversation, "SEND_WITHIN_S", 0.05)
    monkeypatch.setattr(conversation, "LOOK_EVERY_S", 0.01)
    aborted = asyncio.Event()

    class Transport(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return next(waiting)

        def abort(self) -> None:
            aborted.set()

    with live._Taking(Transport()):
        await asyncio.sleep(0.3)
    assert aborted.is_set() == is_cut_off


def test_a_departed_stream_frees_its_place(house, http) -> None:
    listeners, mine = house.app.state.hub._groups, hub.Key(Interest.of(types=frozenset({"nobody.says"})))
    with http.stream("GET", "/api/events?types=nobody.says") as answer:
        lines = answer.iter_lines()  # kept: an iterator that is dropped closes the connection
        assert next(lines) == "retry: 2000"
        until(lambda: mine in listeners)
    until(lambda: mine not in listeners)


def test_at_shutdown_sockets_get_a_goodbye_and_streams_end(build) -> None:
    house = build()
    (house.root.datasets / "made").mkdir(parents=True)
    job_id = _start(house.http, "datasets/made")
    house.wait_for(job_id, lambda job: job.status is Status.COMPLETED)
    with _socket(house, job_id) as socket, house.http.stream("GET", "/api/events") as stream:
        lines = stream.iter_lines()
        _collect(socket, "job.completed")
        while "job.completed" not in next(lines):
            pass
        house.stop()
        while (bye := _frame(socket))["frame"] == "bookmark":
            pass
        assert (bye["frame"], bye["code"]) == ("bye", "restarting")
        assert 1 <= bye["retry_after_s"] <= 10
        assert _closed(socket) == frames.CLOSE_RESTARTING
        assert not [line for line in lines if line and not line.startswith(":")]


def test_a_stream_replays_and_ends_with_its_job(house, http, dataset) -> None:
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(30)
    job_id = _start(http, dataset)
    heard = _stream(http, f"/api/events?job={job_id}")
    assert heard == [(each["seq"], each["event"]) for each in _stored(http, job_id)]


def test_a_stream_resumes_behind_the_last_event_and_stops_when_nothing_is_left(http, trained) -> None:
    stored = _stored(http, trained)
    begin = {"last-event-id": str(stored[0]["seq"])}
    assert [seq for seq, _ in _stream(http, f"/api/events?job={trained}&after=0", begin)] == [
        each["seq"] for each in stored[1:]
    ]
    end = {"last-event-id": str(stored[-1]["seq"])}
    assert http.get(f"/api/events?job={trained}", headers=end).status_code == 204


def test_a_stream_can_be_narrowed_to_types(http, trained) -> None:
    heard = _stream(http, f"/api/events?job={trained}&types=job.started,job.completed")
    assert [event["type"] for _, event in heard] == ["job.started", "job.completed"]


@pytest.mark.parametrize("types", ["metrics.logged", "nobody.says"])
def test_a_stream_of_other_types_ends_with_its_job_too(house, http, dataset, types) -> None:
    gate = threading.Event()
    house.runner.scripts[Kind.FINETUNE] = _logs_metrics(30, gate)
    job_id = _start(http, dataset)
    house.wait_for(job_id, lambda job: (job.step or 0) >= 10)
    with http.stream("GET", f"/api/events?job={job_id}&types={types}") as live:
        gate.set()
        at_the_end = list(live.iter_lines())
    afterwards = _stream(http, f"/api/events?job={job_id}&types={types}")
    said = [(each["seq"], each["event"]) for each in _stored(http, job_id) if each["event"]["type"] == types]
    assert afterwards == said
    assert len([line for line in at_the_end if line.startswith("data: ")]) == len(said)
    ids = [line for line in at_the_end if line.startswith("id: ")]
    assert ids[-1] == f"id: {_stored(http, job_id)[-1]['seq']}"  # a browser that comes back says so, and gets 204


def test_a_stream_behind_the_end_has_nothing_to_say(house, http, trained) -> None:
    last = _stored(http, trained)[-1]["seq"]
    for query in (f"after={last}", f"after={last}&types=metrics.logged"):
        assert http.get(f"/api/events?job={trained}&{query}").status_code == 204


def test_a_stream_that_was_told_to_load_a_snapshot_ends_as_well(http, trained, monkeypatch) -> None:
    monkeypatch.setattr(feed, "TOO_FAR_BEHIND", 2)
    with http.stream("GET", f"/api/events?job={trained}") as answer:
        assert "event: reset" in list(answer.iter_lines())


def test_a_quiet_stream_gets_comments(http, trained, monkeypatch) -> None:
    monkeypatch.setattr(hub, "QUIET_S", 0.05)
    with http.stream("GET", "/api/events?types=none.such") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert next(line for line in answer.iter_lines() if line.startswith(":"))


@pytest.mark.parametrize("query", ["after=-1", "after=x", f"after={2**63}", f"after={2**62}"])
def test_a_stream_refuses_a_cursor_that_can_be_none(http, query) -> None:
    answer = http.get(f"/api/events?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "after")


@contextlib.contextmanager
def _deaf_socket(house, job_id: str):
    """A client that shakes hands and then never reads."""
    host, port = house.address.split(":")
    with plain_socket.create_connection((host, int(port)), timeout=5) as connection:
        head = f"GET /api/train/{job_id}/ws HTTP/1.1\r\nHost: {house.address}\r\nUpgrade: websocket\r\n"
        head += (
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert b" 101 " in connection.recv(100)
        yield connection


@contextlib.contextmanager
def _deaf_stream(house, path: str):
    """A client that reads the head of an answer and then nothing."""
    host, port = house.address.split(":")
    with plain_socket.socket() as connection:
        connection.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_RCVBUF, 4096)
        connection.settimeout(5)
        connection.connect((host, int(port)))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {house.address}\r\n\r\n".encode())
        assert b" 200 " in connection.recv(100)
        yield connection


def _stream(http, url: str, headers: dict | None = None) -> list[tuple[int, dict]]:
    """The numbered events of a stream that ends by itself."""
    heard: list[tuple[int, dict]] = []
    seq = None
    with http.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("id: "):
                seq = int(line[4:])
            elif line.startswith("data: ") and seq is not None:
                heard.append((seq, json.loads(line[6:])))
                seq = None
    return heard


def _stored(http, job_id: str) -> list[dict]:
    return http.get(f"/api/jobs/{job_id}/events?limit=1000").json()["events"]


def _closed(socket) -> int:
    """The code the server closes with; what it still says before is taken."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            socket.recv(timeout=10)
    return socket.close_code
