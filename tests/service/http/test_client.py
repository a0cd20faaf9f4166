"""The clients against the service itself, which is restarted while they listen."""

import asyncio
import contextlib
import threading
import time
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from jobs import backoff, calls, events, redis_server
from jobs.async_client import AsyncClient
from jobs.client import Client
from jobs.errors import NotCompleted
from jobs.specs import Kind
from service.programs import free_port

STEPS = 300


def _trains(pace_s: float = 0.005):
    """Logs a metric a step, as fast as a quick training would."""

    async def train(attempt) -> None:
        await attempt.begin()
        for step in range(1, STEPS + 1):
            await attempt.say(events.MetricsLogged, step=step, values={"train_loss": 1 / step})
            await attempt.progress(step, STEPS)
            await asyncio.sleep(pace_s)
        await attempt.complete()

    return train


class _Restarting:
    """A service at one address that is stopped and started again. Its runner begins anew too, but says the same."""

    def __init__(self, build, fakes, port: int) -> None:
        self._build, self._fakes, self._port = build, fakes, port
        self.start()

    def start(self) -> None:
        self.house = self._build(with_runner=False, port=self._port)
        self.house.runner = self.house.run(self._start_runner())

    async def _start_runner(self):
        runner = self._fakes.FakeRunner(redis_server.address(self.house.settings))
        runner.scripts[Kind.FINETUNE] = _trains()  # before it takes its first command
        return await runner.__aenter__()

    @property
    def address(self) -> str:
        return f"http://{self.house.address}"

    def submit(self) -> str:
        folder = self.house.root.datasets / "made"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text("{}\n")
        with Client(self.address) as client:
            config = {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}
            return client.submit({"kind": "finetune", "config": config})

    def restart_twice(self, job_id: str) -> None:
        """Each time in the middle of the training."""
        for _ in range(2):
            at = self.house.run(self.house.app.state.recorder.job(job_id)).last_seq
            self.house.wait_for(job_id, lambda job, at=at: job.last_seq > at + 60)
            self.house.stop()
            self.start()

    def stored(self, job_id: str) -> list[tuple[int, str]]:
        with Client(self.address) as client:
            page = client.get(f"/api/jobs/{job_id}/events?limit=1000")["events"]
            page += client.get(f"/api/jobs/{job_id}/events?limit=1000&after={page[-1]['seq']}")["events"]
        return [(each["seq"], each["event"]["type"]) for each in page]


@pytest.fixture
def restarting(build, scripts, monkeypatch) -> _Restarting:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.05)
    return _Restarting(build, scripts, free_port("127.0.0.1"))


def _named(heard) -> list[tuple[int, str]]:
    return [(seq, events.type_of(event)) for seq, event in heard if seq is not None]


def test_a_restarted_service_costs_a_listener_no_event_and_tells_none_twice(restarting) -> None:
    job_id = restarting.submit()
    retries: list[float] = []
    heard = []

    def listen() -> None:
        with Client(restarting.address, on_retry=lambda _, pause_s: retries.append(pause_s)) as client:
            heard.extend(client.events(job_id))

    async def listen_too() -> list:
        async with AsyncClient(address) as client:
            return [each async for each in client.events(job_id)]

    address = restarting.address
    others: list = []
    threads = [
        threading.Thread(target=listen),
        threading.Thread(target=lambda: others.extend(asyncio.run(listen_too()))),
    ]
    for thread in threads:
        thread.start()
    restarting.restart_twice(job_id)
    for thread in threads:
        thread.join(60)
    assert _named(heard) == _named(others) == restarting.stored(job_id)
    assert heard[-1][1].result.steps == 4
    assert [type(event) for _, event in heard].count(events.MetricsLogged) == STEPS
    assert retries, "it was restarted while they listened"


def test_a_log_is_followed_over_a_restart_of_the_service(restarting, monkeypatch) -> None:
    monkeypatch.setattr(calls, "LOOK_EVERY_S", 0.02)
    job_id, address = restarting.submit(), restarting.address
    log = restarting.house.root.jobs / job_id / "attempt-1" / "output.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("it began ½\n")
    heard: list[str] = []
    heard_too: list[str] = []
    retries: list[float] = []

    def follow() -> None:
        with Client(address, on_retry=lambda _, pause_s: retries.append(pause_s)) as client:
            for piece in client.read_log(job_id, follow=True):
                heard.append(piece.text)

    async def follow_too() -> None:
        async with AsyncClient(address) as client:
            async for piece in client.read_log(job_id, follow=True):
                heard_too.append(piece.text)

    threads = [threading.Thread(target=follow), threading.Thread(target=lambda: asyncio.run(follow_too()))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while not (heard and heard_too):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    restarting.house.stop()
    with log.open("a") as file:
        file.write("it went on while nobody served\n")
    restarting.start()
    for thread in threads:
        thread.join(60)
    assert "".join(heard) == "".join(heard_too) == log.read_text()
    assert retries, "it was restarted while they listened"


def test_a_job_is_waited_for_until_its_end(house, http, dataset) -> None:
    spec = {"kind": "finetune", "config": {"model_name": "demo-llava", "train_data_path": dataset}}
    with Client(f"http://{house.address}") as client:
        job_id = client.submit(spec)
        assert client.wait(job_id)["result"]["steps"] == 4
        assert client.wait(job_id)["status"] == "completed", "one that has ended is there at once"


def test_a_cancelled_job_is_not_waited_for_in_vain(house, http, dataset, scripts) -> None:
    house.runner.scripts[Kind.FINETUNE] = scripts.run_until_stopped
    spec = {"kind": "finetune", "config": {"model_name": "demo-llava", "train_data_path": dataset}}
    with Client(f"http://{house.address}") as client:
        job_id = client.submit(spec)
        threading.Timer(0.3, client.cancel, (job_id,)).start()
        with pytest.raises(NotCompleted, match="was cancelled"):
            client.wait(job_id)


async def test_an_async_listener_may_leave_early(house, http, dataset) -> None:
    async with AsyncClient(f"http://{house.address}") as client:
        spec = {"kind": "finetune", "config": {"model_name": "demo-llava", "train_data_path": dataset}}
        job_id = await client.submit(spec)
        async with contextlib.aclosing(client.events(job_id)) as listening:
            async for seq, event in listening:
                assert seq is not None
                assert isinstance(event, events.JobSubmitted)
                break
        assert (await client.wait(job_id))["status"] == "completed"


def test_an_export_is_made_and_fetched_with_its_checksum(house, http, trained, scripts, tmp_path: Path) -> None:
    content = bytes(range(256)) * 3000

    async def writes_an_archive(attempt) -> None:
        result = scripts.default_result(attempt.job_id, attempt.spec)
        archive = house.root.folder / result.archive_path
        archive.parent.mkdir(parents=True)
        archive.write_bytes(content)
        await attempt.begin()
        await attempt.complete(
            msgspec.structs.replace(result, archive_bytes=len(content), archive_sha256=sha256(content).hexdigest())
        )

    house.runner.scripts[Kind.EXPORT] = writes_an_archive
    with Client(f"http://{house.address}") as client:
        client.download_export(client.export(trained, "lora_adapter"), tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == content
