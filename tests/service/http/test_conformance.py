"""Whichever way somebody listens, the same is heard: one set of tests for the sockets, the stream and the clients."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import event_stream
import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from jobs import columns, events, frames
from jobs.async_client import AsyncClient
from jobs.client import Client
from jobs.errors import RemoteProblem
from jobs.specs import Kind
from service import feed, hub

Told = tuple[int | None, dict[str, Any]] | str
"""(seq, event), or a word: fresh · reset: … · refused: … · bye."""


def _frames(house, path: str, *wishes: dict[str, Any]) -> Iterator[Told]:
    with connect(f"ws://{house.address}{path}", proxy=None) as socket:
        for wish in wishes:
            socket.send(json.dumps({"frame": "subscribe", "sub": "a"} | wish))
        with contextlib.suppress(ConnectionClosed):
            while True:
                yield from _told(frames.decode_server(socket.recv(timeout=10)))


def _told(frame: frames.ServerFrame) -> Iterator[Told]:
    match frame:
        case frames.Events():
            for one in columns.unfold(frame):
                yield one.seq, msgspec.json.decode(one.event)
        case frames.Bookmark():
            yield "fresh"
        case frames.Reset():
            yield f"reset: {frame.reason}"
        case frames.Problem():
            yield f"refused: {frame.code}"
        case frames.Bye():
            yield "bye"


def socket_of_job(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    return _frames(house, f"/api/train/{job_id}/ws?after={after}&types={types}")


def socket_of_all(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    everything = _frames(house, f"/api/ws?after={after}&types={types}")
    return (told for told in everything if isinstance(told, str) or told[1]["job_id"] == job_id)


def subscription(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    return _frames(house, "/api/ws", {"jobs": [job_id], "after": after, "types": types.split(",") if types else None})


def subscription_by_tag(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    wish = {"tag": "made", "after": after, "types": types.split(",") if types else None}
    told = _frames(house, "/api/ws", wish)
    return (one for one in told if isinstance(one, str) or one[1]["job_id"] == job_id)


def stream(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    query = {"job": job_id, "after": after} | ({"types": types} if types else {})
    with httpx.stream("GET", f"http://{house.address}/api/events", params=query, timeout=10, trust_env=False) as answer:
        if answer.is_error:
            problem = json.loads(answer.read())
            yield f"refused: {'bad_cursor' if problem['code'] == 'validation_error' else problem['code']}"
        for one in event_stream.said(answer.iter_lines()):
            if one.is_comment:
                yield "fresh"
            elif one.kind == "reset":
                yield f"reset: {json.loads(one.data)['reason']}"
            elif one.data:
                yield one.seq, json.loads(one.data)


def client(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    try:
        with Client(f"http://{house.address}") as listening:
            for seq, event in listening.events(job_id, after):
                yield seq, msgspec.json.decode(events.encode(event))
    except RemoteProblem as problem:
        yield f"refused: {problem.code}"


def async_client(house, job_id: str, after: int, types: str = "") -> Iterator[Told]:
    async def listen() -> list[Told]:
        async with AsyncClient(f"http://{house.address}") as listening:
            return [
                (seq, msgspec.json.decode(events.encode(event))) async for seq, event in listening.events(job_id, after)
            ]

    try:
        yield from asyncio.run(listen())
    except RemoteProblem as problem:
        yield f"refused: {problem.code}"


SOCKETS = [socket_of_job, socket_of_all, subscription, subscription_by_tag]
FILTERED = [*SOCKETS, stream]
WAYS = [*FILTERED, client, async_client]
ENDS = ("job.completed", "job.failed", "job.cancelled")


def _to_the_end(listening: Iterator[Told]) -> list[tuple[int, dict[str, Any]]]:
    """The numbered events to the job's end."""
    heard = []
    for told in listening:
        assert not isinstance(told, str) or told == "fresh", told
        if isinstance(told, str) or told[0] is None:
            continue
        heard.append(told)
        if told[1]["type"] in ENDS:
            break
    return heard


def _stored(http, job_id: str, types: str = "") -> list[tuple[int, dict[str, Any]]]:
    query = {"limit": 1000} | ({"types": types} if types else {})
    page = http.get(f"/api/jobs/{job_id}/events", params=query).json()["events"]
    return [(one["seq"], one["event"]) for one in page]


@pytest.fixture
def gate(house, http):
    """Opens the second half of every training."""
    opened = threading.Event()

    async def train(attempt) -> None:
        await attempt.begin()
        for step in range(1, 81):
            if step == 40:
                await asyncio.to_thread(opened.wait, 10)
            await attempt.say(events.MetricsLogged, step=step, epoch=step / 80, values={"train_loss": 1 / step})
            if step % 20 == 0:
                await attempt.say(events.MetricsLogged, step=step, values={"eval_loss": 2 / step})
                await attempt.say(events.JobNoted, message=f"step {step}")
            await attempt.progress(step, 80)
        await attempt.complete()

    house.runner.scripts[Kind.FINETUNE] = train
    yield opened
    opened.set()


@pytest.fixture
def half(house, http, dataset, gate) -> str:
    """A training that is half done."""
    config = {"model_name": "demo-llava", "train_data_path": dataset}
    job_id = http.post("/api/train/start", json={"config": config, "tags": ["made"]}).json()["job_id"]
    house.wait_for(job_id, lambda job: (job.step or 0) >= 39)
    return job_id


@pytest.mark.parametrize("way", WAYS)
def test_what_was_and_what_comes_is_heard_once_and_in_order(house, http, half, gate, way) -> None:
    threading.Timer(0.2, gate.set).start()
    assert _to_the_end(way(house, half, 0)) == _stored(http, half)


@pytest.mark.parametrize("way", WAYS)
def test_behind_a_cursor_only_the_rest_is_heard(house, http, half, gate, way) -> None:
    cursor = _stored(http, half)[20][0]
    gate.set()
    house.wait_for(half, lambda job: job.has_ended)
    assert _to_the_end(way(house, half, cursor)) == _stored(http, half)[21:]


@pytest.mark.parametrize("way", FILTERED)
def test_only_the_types_that_were_asked_for_are_heard(house, http, half, gate, way) -> None:
    types = "job.noted,job.completed"
    listening = way(house, half, 0, types)
    threading.Timer(0.2, gate.set).start()
    assert _to_the_end(listening) == _stored(http, half, types)


@pytest.mark.parametrize("way", FILTERED)
def test_a_connection_that_broke_goes_on_behind_the_last_seq(house, http, half, gate, way) -> None:
    heard: list[Any] = []
    with contextlib.closing(way(house, half, 0)) as listening:
        while len(heard) < 25:
            told = next(listening)
            heard += [told] if not isinstance(told, str) and told[0] is not None else []
    gate.set()
    heard += _to_the_end(way(house, half, heard[-1][0]))
    assert heard == _stored(http, half)


@pytest.mark.parametrize("way", WAYS)
def test_small_windows_and_a_short_queue_lose_nothing(house, http, half, gate, way, monkeypatch) -> None:
    for module, name, value in [
        (feed, "WINDOW", 16), (feed, "SMALL_WINDOW", 4), (hub, "PIECE_EVENTS", 5), (hub, "QUEUE_BYTES", 2000),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, value)
    threading.Timer(0.2, gate.set).start()
    assert _to_the_end(way(house, half, 0)) == _stored(http, half)


def test_all_who_come_at_any_moment_by_any_way_hear_the_same(house, http, half, gate) -> None:
    heard: list[Any] = []
    listeners = [
        threading.Thread(target=lambda way=way: heard.append(_to_the_end(way(house, half, 0)))) for way in WAYS
    ]
    for number, listener in enumerate(listeners):
        if number == len(listeners) // 2:
            gate.set()
        listener.start()
    for listener in listeners:
        listener.join(20)
    assert heard == [_stored(http, half)] * len(WAYS)


@pytest.mark.parametrize("way", FILTERED)
def test_who_misses_too_much_is_told_so_and_goes_on_with_what_comes(house, http, half, gate, way, monkeypatch) -> None:
    monkeypatch.setattr(feed, "TOO_FAR_BEHIND", 20)
    head = _stored(http, half)[-1][0]
    listening = way(house, half, 0)
    assert next(listening) == "reset: too_far_behind"
    gate.set()
    assert _to_the_end(listening) == [one for one in _stored(http, half) if one[0] > head]


@pytest.mark.parametrize("way", [client, async_client])
def test_a_client_that_misses_too_much_reads_it(house, http, half, gate, way, monkeypatch) -> None:
    monkeypatch.setattr(feed, "TOO_FAR_BEHIND", 20)
    threading.Timer(0.2, gate.set).start()
    assert _to_the_end(way(house, half, 0)) == _stored(http, half)


@pytest.mark.parametrize("way", FILTERED)
def test_who_hears_nothing_is_told_that_it_is_fresh(house, http, half, way, monkeypatch) -> None:
    monkeypatch.setattr(hub, "QUIET_S", 0.05)
    listening = way(house, half, 0, "job.cancelled")
    assert [next(listening), next(listening), next(listening)] == ["fresh"] * 3


@pytest.mark.parametrize("way", [socket_of_job, subscription, stream, client, async_client])
def test_a_job_that_is_not_there_is_refused(house, http, way) -> None:
    assert next(way(house, "nope", 0)) == "refused: job_not_found"


@pytest.mark.parametrize("way", WAYS)
def test_a_cursor_beyond_the_newest_event_is_refused(house, http, half, way) -> None:
    assert next(way(house, half, 2**61)) == "refused: bad_cursor"


@pytest.mark.parametrize("way", FILTERED)
def test_a_service_that_ends_tells_what_waits_and_then_ends_it(build, way) -> None:
    house = build()
    (house.root.datasets / "made").mkdir(parents=True)
    config = {"model_name": "demo-llava", "train_data_path": "datasets/made"}
    body = {"config": config, "tags": ["made"]}
    ended = house.http.post("/api/train/start", json=body).json()["job_id"]
    house.wait_for(ended, lambda job: job.has_ended)
    listening = way(house, ended, 0, "job.started,job.paused")
    assert next(listening)[1]["type"] == "job.started"
    house.stop()
    assert [told for told in listening if told not in ("fresh", "bye")] == []


def test_a_stream_works_with_curl(house, http, half, gate) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("There is no curl on this machine.")
    command = [
        curl,
        "-sN",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        f"http://{house.address}/api/events?job={half}&after=0",
    ]
    threading.Timer(0.3, gate.set).start()
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    told = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
    assert said.startswith("retry: 2000\n\n")
    assert [event for event in told if event["type"] != "job.progressed"] == [one for _, one in _stored(http, half)]
