"""The core of the service without HTTP, on a real SQLite and a real Redis."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from jobs import bus as streams
from jobs import frames, redis_server
from jobs.events import Event, JobPlaced, JobStarted, JobSubmitted
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import FinetuneSpec, JobSpec
from jobs.training_config import TrainingConfig
from service.dispatch import Dispatch
from service.hub import Hub, Piece
from service.ledger import Ledger
from service.reconcile import Reconciler
from service.recorder import Recorder
from service.records import JobRecord
from service.store import Store

WITHIN_S = 20
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TRAINING = FinetuneSpec(
    config=TrainingConfig(model_name="demo-llava", train_data_path="datasets/made/train.jsonl"), tags=("birds",)
)


class Core:
    """What the app opens in its lifespan. `sleepy` leaves the reconciler out, so nothing happens by itself."""

    def __init__(self, settings: Settings, *, sleepy: bool) -> None:
        self.settings = settings
        self.root = DataRoot(settings.data_folder)
        self._sleepy = sleepy

    async def __aenter__(self) -> "Core":
        self.store = await Store.open(self.root.database)
        self.hub = Hub()
        self.bus = streams.connect(redis_server.address(self.settings))
        self.recorder = Recorder(self.settings, self.root, self.store, self.hub, self.bus)
        self.reconciler = Reconciler(self.settings, self.root, self.recorder, self.bus)
        self.dispatch = Dispatch(self.settings, self.root, self.store, self.recorder, self.hub, self.reconciler)
        await self.recorder.start()
        if not self._sleepy:
            await self.reconciler.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hub.close()
        await self.reconciler.stop()
        await self.recorder.stop()
        await self.bus.close()
        await self.store.close()

    async def until(self, job_id: str, is_so: Callable[[JobRecord], bool]) -> JobRecord:
        """The job's record as soon as it is so; woken by the job's events."""
        async with asyncio.timeout(WITHIN_S):
            with self.hub.subscribe(job_id) as news:
                while (record := await self.recorder.job(job_id)) is None or not is_so(record):
                    await anext(news)
        return record

    async def ended(self, job_id: str) -> JobRecord:
        return await self.until(job_id, lambda record: record.has_ended)

    async def running(self, spec: JobSpec = TRAINING) -> JobRecord:
        """A job that runner `r` is said to run on its cpu."""
        job = await self.dispatch.submit(spec)
        about = {"job_id": job.job_id, "attempt": 1, "at": BEGAN}
        placed = JobPlaced(runner_id="r", device="cpu", **about)
        (_, record) = await self.recorder.record([placed, JobStarted(n=1, device="cpu", **about)])
        return record


Cores = Callable[..., Any]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(data_root=str(tmp_path_factory.mktemp("redis")))
    yield redis_server.ensure(settings)
    redis_server.stop(settings)


@pytest.fixture
def wiped(redis_url: str) -> Callable[[], None]:
    """Empties Redis; once before the test as well."""

    def wipe() -> None:
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()

    wipe()
    return wipe


@pytest.fixture
def core_at(tmp_path: Path, redis_url: str, wiped: Callable[[], None]) -> Cores:
    """Opens the core on this test's data root; again and again, like restarts of the service."""
    quick = {"report_every_s": 0.1, "no_runner_wait_s": 0.2, "lease_s": 30.0}
    dataset = tmp_path / "datasets" / "made"
    dataset.mkdir(parents=True)
    (dataset / "train.jsonl").write_text("{}\n")

    @asynccontextmanager
    async def opened(*, sleepy: bool = False, **changes: Any) -> AsyncIterator[Core]:
        settings = Settings(**{"data_root": str(tmp_path), "redis_url": redis_url} | quick | changes)
        async with Core(settings, sleepy=sleepy) as core:
            yield core

    return opened


@pytest.fixture
async def core(core_at: Cores) -> AsyncIterator[Core]:
    async with core_at() as opened:
        yield opened


@pytest.fixture
async def quiet(core_at: Cores) -> AsyncIterator[Core]:
    """A core that places and sends nothing by itself."""
    async with core_at(sleepy=True) as opened:
        yield opened


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "training.db")
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(store: Store) -> AsyncIterator[Ledger]:
    """Writes to `store`, and listens to nobody."""
    opened = Ledger(store, Hub())
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def _every_frame_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, wherever a test makes the service say or hear one."""
    schema = _load(Path(__file__).parent / "frame_schema.py")
    encode, frame_of, decode = frames.encode, Piece.frame_of, frames.decode_client

    def checked(frame: frames.Frame) -> bytes:
        text = encode(frame)
        schema.check(text, "ClientFrame" if isinstance(frame, frames.ClientFrame) else "ServerFrame")
        return text

    def named(piece: Piece, sub: str) -> str:
        text = frame_of(piece, sub)
        schema.check(text)
        return text

    def heard(text: str) -> frames.ClientFrame:
        frame = decode(text)
        schema.check(text, "ClientFrame")
        return frame

    monkeypatch.setattr(frames, "encode", checked)
    monkeypatch.setattr(Piece, "frame_of", named)
    monkeypatch.setattr(frames, "decode_client", heard)


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


@pytest.fixture
def fakes() -> Any:
    """The module with the fake runner and its scripts."""
    return _load(Path(__file__).parent / "fake_runner.py")


@pytest.fixture
def beside() -> Callable[[str], Any]:
    """Gives a helper module of this folder by its name."""
    return lambda name: _load(Path(__file__).parent / f"{name}.py")


class History:
    """Events of one job, each a second after the one before."""

    def __init__(self, job_id: str = "job_a", spec: JobSpec = TRAINING) -> None:
        self.job_id = job_id
        self.spec = spec
        self._clock = BEGAN

    def event(self, kind: type[Event], /, attempt: int = 1, n: int | None = None, **fields: Any) -> Any:
        self._clock += timedelta(seconds=1)
        return kind(job_id=self.job_id, attempt=attempt, at=self._clock, n=n, **fields)

    def submitted(self) -> JobSubmitted:
        return self.event(JobSubmitted, spec=self.spec)

    def started(self, attempt: int = 1) -> list[Event]:
        """Placed and started: the journal has one line."""
        placed = self.event(JobPlaced, attempt, runner_id="r", device="cpu")
        return [placed, self.event(JobStarted, attempt, n=1, device="cpu", device_name="CPU", runner_id="r")]


@pytest.fixture
def history() -> type[History]:
    return History


@pytest.fixture
def training() -> FinetuneSpec:
    return TRAINING


@pytest.fixture
def configured() -> Callable[..., FinetuneSpec]:
    """The training with other settings."""

    def spec(**changes: Any) -> FinetuneSpec:
        return msgspec.structs.replace(TRAINING, config=msgspec.structs.replace(TRAINING.config, **changes))

    return spec


@pytest.fixture
def soon() -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Waits until something is true that no event tells."""

    async def wait(is_so: Callable[[], Any]) -> Any:
        async with asyncio.timeout(WITHIN_S):
            while not (found := is_so()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found

    return wait
