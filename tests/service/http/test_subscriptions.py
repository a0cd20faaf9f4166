"""One socket, many subscriptions: what each hears, what is refused, and how the conversation ends."""

import asyncio
import contextlib
import itertools
import json
import threading
import time

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from jobs import columns, events, frames
from jobs.specs import Kind
from service import conversation, feed, hub

TOKEN = "a token of more than thirty-two characters"


class Talk:
    """A client's side of a conversation."""

    def __init__(self, house, prefix: str = "/api", **options) -> None:
        self._opening = connect(f"ws://{house.address}{prefix}/ws", proxy=None, max_size=None, **options)
        self.frames: list[frames.ServerFrame] = []

    def __enter__(self):
        self._socket = self._opening.__enter__()
        return self

    def __exit__(self, *of):
        self._opening.__exit__(*of)

    def say(self, frame: str, **fields) -> None:
        self._socket.send(json.dumps({"frame": frame} | fields))

    def hear(self, kind, sub: str | None = None):
        """The next frame of a kind, about a subscription if one is named."""
        while True:
            frame = frames.decode_server(self._socket.recv(timeout=10))
            self.frames.append(frame)
            if isinstance(frame, kind) and (sub is None or frame.sub == sub):
                return frame

    def fresh(self, *subs: str) -> None:
        """Hear until each of these has said that nothing is missing, in whichever order."""
        while set(subs) - {frame.sub for frame in self.frames if isinstance(frame, frames.Bookmark)}:
            self.hear(frames.Bookmark)

    def until(self, kind: str, sub: str, times: int = 1) -> None:
        """Hear until so many events of a type came."""
        while [name for _, name in self.heard(sub)].count(kind) < times:
            self.hear(frames.Events, sub)

    def heard(self, sub: str) -> list[tuple[int, str]]:
        """(seq, type) of all that a subscription has told, with frames that follow one another."""
        told = [frame for frame in self.frames if isinstance(frame, frames.Events) and frame.sub == sub]
        assert all(after.from_seq == before.to_seq for before, after in itertools.pairwise(told))
        numbered = [one for frame in told for one in columns.unfold(frame) if one.seq is not None]
        assert [one.seq for one in numbered] == sorted({one.seq for one in numbered})
        return [(one.seq, events.type_of(events.decode_event(one.event))) for one in numbered]

    def closed(self) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.frames.append(frames.decode_server(self._socket.recv(timeout=10)))
        return self._socket.close_code


def _start(http, dataset: str, *tags: str) -> str:
    config = {"model_name": "demo-llava", "train_data_path": dataset}
    return http.post("/api/train/start", json={"config": config, "tags": tags}).json()["job_id"]


def _stored(http, *job_ids: str, types: str = "") -> list[tuple[int, str]]:
    told = []
    for job_id in job_ids:
        page = http.get(f"/api/jobs/{job_id}/events", params={"limit": 1000, "types": types}).json()["events"]
        told += [(one["seq"], one["event"]["type"]) for one in page]
    return sorted(told)


@pytest.fixture
def stepwise(house, http):
    """Trainings that log points, half of them only once the gate is open."""
    gate = threading.Event()

    async def train(attempt) -> None:
        await attempt.begin()
        for step in range(1, 121):
            if step == 60:
                await asyncio.to_thread(gate.wait, 10)
            await attempt.say(events.MetricsLogged, step=step, values={"train_loss": 1 / step})
            await attempt.progress(step, 120)
        await attempt.complete()

    house.runner.scripts[Kind.FINETUNE] = train
    yield gate
    gate.set()


@pytest.mark.parametrize("prefix", ["/api", "/api/training"])
def test_each_subscription_of_a_socket_hears_what_it_asked_for(house, http, dataset, stepwise, prefix) -> None:
    with Talk(house, prefix) as talk:
        welcome = talk.hear(frames.Welcome)
        assert welcome.conn
        assert welcome.limits.queue_bytes == 2**20
        talk.say("subscribe", sub="everything", all=True)
        talk.say("subscribe", sub="ends", all=True, types=["job.completed"], calm=True)
        talk.say("subscribe", sub="birds", tag="birds", initial="none")
        talk.fresh("everything", "ends", "birds")
        bird, fish = _start(http, dataset, "birds"), _start(http, dataset, "fish")
        talk.say("subscribe", sub="fish", jobs=[fish], after=0)
        stepwise.set()
        talk.until("job.completed", "everything", 2)
        talk.until("job.completed", "ends", 2)
        talk.until("job.completed", "birds")
        talk.until("job.completed", "fish")
    assert talk.heard("everything") == _stored(http, bird, fish)
    assert talk.heard("ends") == _stored(http, bird, fish, types="job.completed")
    assert talk.heard("birds") == _stored(http, bird)
    assert talk.heard("fish") == _stored(http, fish)
    assert any(frame.merged and frame.points for frame in talk.frames if isinstance(frame, frames.Events))


def test_the_snapshot_comes_first_and_the_events_go_on_where_it_stands(house, http, dataset, stepwise) -> None:
    job_id = _start(http, dataset)
    house.wait_for(job_id, lambda job: (job.step or 0) >= 30)
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", jobs=[job_id])
        snapshot = talk.hear(frames.Snapshot)
        stepwise.set()
        talk.until("job.completed", "a")
    (job,) = snapshot.jobs
    assert (job["job_id"], job["status"]) == (job_id, "running")
    assert job["last_seq"] >= snapshot.seq - 1, "it is not older than it says"
    assert talk.heard("a") == [one for one in _stored(http, job_id) if one[0] > snapshot.seq]
    assert [type(frame).__name__ for frame in talk.frames][:2] == ["Welcome", "Snapshot"]


def test_a_snapshot_of_all_jobs_is_a_page_and_comes_in_frames_that_clients_take(
    house, http, trained, monkeypatch
) -> None:
    monkeypatch.setattr(conversation, "SNAPSHOT_JOBS", 2)
    monkeypatch.setattr(hub, "PIECE_BYTES", 100)
    config = {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}
    newest = http.post("/api/train/start", json={"config": config}).json()["job_id"]
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", all=True)
        first, second = talk.hear(frames.Snapshot), talk.hear(frames.Snapshot)
    assert [len(one.jobs) for one in (first, second)] == [1, 1]
    assert first.jobs[0]["job_id"] == newest
    assert (first.more, first.before, second.more) == (True, None, False)
    assert second.before == second.jobs[0]["job_id"], "the rest is on the pages behind it"


def test_behind_a_cursor_there_is_no_snapshot_unless_one_is_asked_for(house, http, trained) -> None:
    stored = _stored(http, trained)
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", jobs=[trained], after=stored[0][0])
        talk.hear(frames.Bookmark, "a")
        talk.say("subscribe", sub="b", jobs=[trained], after=stored[1][0], initial="snapshot")
        assert talk.hear(frames.Snapshot).jobs[0]["status"] == "completed"
        talk.hear(frames.Bookmark, "b")
    assert talk.heard("a") == stored[1:]
    assert talk.heard("b") == stored[2:]
    assert [frame.sub for frame in talk.frames if isinstance(frame, frames.Snapshot)] == ["b"]


def test_whoever_asks_for_nothing_hears_nothing(house, http, trained, dataset, monkeypatch) -> None:
    with Talk(house) as talk:
        talk.hear(frames.Welcome)
        house.wait_for(_start(http, dataset), lambda job: job.has_ended)
        talk.say("subscribe", sub="a", all=True, initial="none")
        talk.hear(frames.Bookmark)
    assert [type(frame).__name__ for frame in talk.frames] == ["Welcome", "Bookmark"]


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"jobs": ["nope"]}, "job_not_found"),
        ({}, "bad_subscription"),
        ({"all": True, "tag": "birds"}, "bad_subscription"),
        ({"all": True, "after": 2**62}, "bad_cursor"),
    ],
)
def test_what_cannot_be_heard_is_refused_and_the_rest_goes_on(house, http, trained, wish, code) -> None:
    with Talk(house) as talk:
        talk.say("subscribe", sub="bad", **wish)
        assert talk.hear(frames.Problem, "bad").code == code
        talk.say("subscribe", sub="bad", jobs=[trained], after=0)  # its name is free
        talk.until("job.completed", "bad")


def test_a_name_stands_for_one_subscription_until_it_is_given_back(house, http, dataset) -> None:
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", all=True, initial="none")
        talk.hear(frames.Bookmark)
        talk.say("subscribe", sub="a", all=True)
        assert talk.hear(frames.Problem).code == "name_taken"
        talk.say("unsubscribe", sub="a")
        talk.say("unsubscribe", sub="a")
        assert talk.hear(frames.Problem).code == "no_such_subscription"
        house.wait_for(_start(http, dataset), lambda job: job.has_ended)
        talk.say("subscribe", sub="a", all=True, types=["job.started"], initial="none")
        talk.hear(frames.Bookmark)
        assert talk.heard("a") == [], "nothing of what happened between"


def test_a_connection_carries_so_many_subscriptions_and_no_more(house, monkeypatch) -> None:
    monkeypatch.setattr(frames, "SUBSCRIPTIONS_MAX", 2)
    with Talk(house) as talk:
        for sub in ("a", "b", "c"):
            talk.say("subscribe", sub=sub, all=True, initial="none")
        assert talk.hear(frames.Problem, "c").code == "too_many"
        talk.say("unsubscribe", sub="a")
        talk.say("subscribe", sub="d", all=True, initial="none")
        talk.hear(frames.Bookmark, "d")


def test_a_client_that_is_too_slow_for_the_log_is_told_to_load_a_snapshot(
    house, http, dataset, stepwise, monkeypatch
) -> None:
    job_id = _start(http, dataset)
    house.wait_for(job_id, lambda job: (job.step or 0) >= 30)
    monkeypatch.setattr(hub, "QUEUE_BYTES", 2_000)
    monkeypatch.setattr(hub, "TICK_S", 0.3)
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", jobs=[job_id], initial="none")
        talk.hear(frames.Bookmark)
        monkeypatch.setattr(feed, "TOO_FAR_BEHIND", 5)
        stepwise.set()
        reset = talk.hear(frames.Reset, "a")
    assert (reset.reason, reset.snapshot_url) == ("lagging", f"/api/jobs/{job_id}")


def test_a_ping_that_is_answered_keeps_the_conversation(house, monkeypatch) -> None:
    monkeypatch.setattr(conversation, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(conversation, "PONG_WITHIN_S", 0.4)
    monkeypatch.setattr(conversation, "LOOK_EVERY_S", 0.05)
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", all=True, initial="none")
        until = time.monotonic() + 1
        while time.monotonic() < until:
            talk.hear(frames.Ping)
            talk.say("pong")
        last = talk.frames[-1]
        assert talk.closed() == frames.CLOSE_SLOW
    assert isinstance(last, frames.Ping)
    bye = talk.frames[-1]
    assert (bye.code, bye.retry_after_s) == ("slow", 1.0)


def test_a_service_that_ends_tells_every_subscription_the_rest_and_says_goodbye(build) -> None:
    house = build()
    (house.root.datasets / "made").mkdir(parents=True)
    with Talk(house) as talk, Talk(house) as silent:
        for sub in ("a", "b"):
            talk.say("subscribe", sub=sub, all=True, initial="none")
        talk.fresh("a", "b")
        silent.hear(frames.Welcome)
        job_id = _start(house.http, "datasets/made")
        house.wait_for(job_id, lambda job: job.has_ended)
        stored = _stored(house.http, job_id)
        house.stop()
        for each in (talk, silent):
            assert each.closed() == frames.CLOSE_RESTARTING
            assert each.frames[-1].code == "restarting"
            assert 1 <= each.frames[-1].retry_after_s <= 10
    assert talk.heard("a") == talk.heard("b") == stored


def test_with_a_token_the_first_frame_says_it_and_then_subscriptions_follow(build) -> None:
    house = build(token=TOKEN)
    with Talk(house) as talk:
        talk.say("auth", token=TOKEN)
        talk.say("subscribe", sub="a", all=True, initial="none")
        talk.hear(frames.Bookmark)
    with Talk(house) as talk:
        talk.say("subscribe", sub="a", all=True)
        assert talk.closed() == frames.CLOSE_UNAUTHENTICATED
    assert talk.frames == []
