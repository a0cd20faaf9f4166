"""A service on a real socket, in a thread of its own, with a fake runner beside it: what the HTTP tests talk to.

The framework's own test client decodes paths twice, so nothing here uses it.
"""

import asyncio
import importlib.util
import io
import sys
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from jobs import logs, redis_server
from jobs.paths import DataRoot
from jobs.settings import Settings
from service import cli, serve
from service.app import create_app
from service.records import JobRecord

_WITHIN_S = 20


def _load(path: Path) -> Any:
    """A helper module beside the tests, which are no packages."""
    name = f"tests_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


fakes = _load(Path(__file__).parents[1] / "fake_runner.py")


class _Server(serve.Server):
    """Tells the test's thread that it listens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.listens = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listens.set()


class House:
    """A running service. `app.state` has its parts; `run` executes a coroutine in its loop."""

    def __init__(self, settings: Settings, *, with_runner: bool = True) -> None:
        self.settings = settings
        self.root = DataRoot(settings.data_folder)
        self.app = create_app(self.settings)
        self.runner: Any = None
        self._with_runner = with_runner
        self._server = _Server(serve.configure(self.app, self.settings).config, self.app)
        self._thread = threading.Thread(target=self._serve, name="service")

    def __enter__(self) -> "House":
        url = redis_server.ensure(self.settings)
        self._thread.start()
        assert self._server.listens.wait(_WITHIN_S)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        headers = {"authorization": f"Bearer {self.settings.token}"} if self.settings.token else {}
        self.http = httpx.Client(base_url=f"http://{self.address}", headers=headers, timeout=_WITHIN_S, trust_env=False)
        if self._with_runner:
            self.runner = self.run(self._start_runner(url))
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        try:
            self.stop()
        finally:
            redis_server.stop(self.settings)

    def stop(self) -> None:
        """End the service as SIGTERM would."""
        if self.runner is not None:
            self.run(self.runner.__aexit__())
            self.runner = None
        self._server.should_exit = True
        self._thread.join(_WITHIN_S)
        assert not self._thread.is_alive()

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(_WITHIN_S)

    def wait_for(self, job_id: str, done: Callable[[JobRecord], bool]) -> JobRecord:
        """The job's record as soon as it is as wanted; woken by the job's own events."""
        return self.run(self._wait_for(job_id, done))

    async def _wait_for(self, job_id: str, done: Callable[[JobRecord], bool]) -> JobRecord:
        recorder, hub = self.app.state.recorder, self.app.state.hub
        async with asyncio.timeout(_WITHIN_S):
            with hub.subscribe(job_id) as news:
                while not done(record := await recorder.job(job_id)):
                    await anext(news)
        return record

    async def _start_runner(self, url: str) -> Any:
        runner = await fakes.FakeRunner(url).__aenter__()
        async with asyncio.timeout(_WITHIN_S):
            while not self.app.state.recorder.runners:
                await self.app.state.recorder.next_report()
        return runner

    def _serve(self) -> None:
        async def serving() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve()

        asyncio.run(serving())


def settings_for(folder: Path, **changes: Any) -> Settings:
    quick = {"port": 0, "report_every_s": 0.1, "no_runner_wait_s": 0.3, "sync_wait_s": 10.0, "lease_s": 30.0}
    return Settings(data_root=str(folder), **quick | changes)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One service for all tests that leave it as they found it."""
    with House(settings_for(tmp_path_factory.mktemp("house"))) as running:
        yield running


@pytest.fixture
def http(house: House) -> httpx.Client:
    house.runner.scripts.clear()
    return house.http


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Starts a service of one's own, with other settings."""
    running: list[House] = []

    def start(*, with_runner: bool = True, **changes: Any) -> House:
        running.append(House(settings_for(tmp_path, **changes), with_runner=with_runner).__enter__())
        return running[-1]

    yield start
    for each in running:
        each.__exit__()


@pytest.fixture
def scripts() -> Any:
    """The module with the fake runner's scripts."""
    return fakes


def archive(entries: dict[str, bytes] | None = None) -> bytes:
    """A small ZIP file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in (entries or {"annotations.json": b"{}", "frames/0.png": b"x"}).items():
            writer.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def uploaded(http: httpx.Client) -> str:
    """The name of an uploaded archive."""
    answer = http.post("/api/data/upload", files={"file": ("export.zip", archive(), "application/zip")})
    assert answer.status_code == 200, answer.text
    return answer.json()["file_path"]


@pytest.fixture
def dataset(house: House) -> str:
    """The name of a dataset's file that exists."""
    folder = house.root.datasets / "made"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text('{"id": "0"}\n')
    return "datasets/made/train.jsonl"


@pytest.fixture
def trained(house: House, http: httpx.Client, dataset: str) -> str:
    """A completed training."""
    config = {"model_name": "demo-llava", "train_data_path": dataset}
    answer = http.post("/api/train/start", json={"config": config, "experiment_name": "made", "tags": ["made"]})
    assert answer.status_code == 200, answer.text
    house.wait_for(answer.json()["job_id"], lambda job: job.has_ended)
    return answer.json()["job_id"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody logs: the service of these tests lives in the process whose output is read."""
    monkeypatch.setattr(logs, "set_up", lambda level: None)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture
def run(
    house: House,
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: None,
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of the terminal in this process; its exit status, stdout and stderr."""
    monkeypatch.setenv("TRAINING_URL", f"http://{house.address}")

    def command(*arguments: str) -> tuple[int, str, str]:
        status = cli.main([*arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command
