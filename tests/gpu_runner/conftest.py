"""The service's side of the wire, runners with toy recipes, and who of a data root still lives."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from gpu_runner.worker import Runner
from jobs import bus, commands, events, redis_server, tasks
from jobs.bus import BEGINNING, UNREACHABLE, Bus
from jobs.events import Event, Held, RunnerReported
from jobs.paths import AttemptFolder, DataRoot
from jobs.settings import Settings
from jobs.specs import GenerateSpec, ValidateSpec

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the zygote has it: two trainings would spin against each other

HERE = Path(__file__).parent
FoundT = TypeVar("FoundT")
_numbers = itertools.count(1)  # job ids are never used twice: all tests share one stream


class Front:
    """What the service does: sends commands, hears events and reports. Everything heard is kept, in order."""

    def __init__(self, settings: Settings, line: Bus) -> None:
        self.settings = settings
        self.root = DataRoot(settings.data_folder)
        self.heard: list[tuple[Event, bytes]] = []
        self.reports: list[RunnerReported] = []
        self._line = line
        self._news = asyncio.Condition()
        self._after = BEGINNING

    async def listen(self) -> None:
        while True:
            try:
                entries = await self._line.read_events(self._after, block_s=0.1)
            except UNREACHABLE:
                await asyncio.sleep(0.02)
                continue
            for self._after, message in entries:
                self._take(message)
            async with self._news:
                self._news.notify_all()

    def _take(self, message: bytes) -> None:
        event = events.decode_message(message)
        if not isinstance(event, RunnerReported) and event.job_id.startswith(f"{self.settings.runner_name}-"):
            self.heard.append((event, message))
        elif isinstance(event, RunnerReported) and event.runner_id == self.settings.runner_name:
            self.reports.append(event)

    async def start(
        self, behaviour: str, *, slot: str = "cpu", device: str = "cpu", attempt: int = 1, job_id: str = ""
    ) -> str:
        job_id = job_id or f"{self.settings.runner_name}-{next(_numbers)}"
        if slot == "cpu":
            spec = ValidateSpec(data_path=behaviour)
        else:
            spec = GenerateSpec(data_path=behaviour, model_name="toy")
        await self.send(commands.Start(job_id=job_id, attempt=attempt, spec=spec, device=device))
        return job_id

    async def send(self, *wishes: commands.AnyCommand) -> None:
        """As the service does: again until Redis takes it."""
        while True:
            try:
                return await self._line.send(self.settings.runner_name, wishes)
            except UNREACHABLE:
                await asyncio.sleep(0.02)

    async def cancel(self, job_id: str, attempt: int = 1) -> None:
        await self.send(commands.Cancel(job_id=job_id, attempt=attempt))

    async def until(self, look: Callable[[], FoundT | None], within_s: float = 15) -> FoundT:
        """Wait for what `look` finds in what was heard."""
        async with asyncio.timeout(within_s), self._news:
            while not (found := look()):
                await self._news.wait()
            return found

    async def event(self, job_id: str, kind: type[Event], attempt: int = 1) -> Event:
        return await self.until(
            lambda: next(
                (e for e, _ in self.heard if isinstance(e, kind) and (e.job_id, e.attempt) == (job_id, attempt)), None
            )
        )

    async def end(self, job_id: str, attempt: int = 1) -> Event:
        return await self.event(job_id, events.ATTEMPT_ENDED, attempt)

    async def reported(self, is_so: Callable[[RunnerReported], bool]) -> RunnerReported:
        """Wait until the newest report is so."""
        return await self.until(lambda: self.reports[-1] if self.reports and is_so(self.reports[-1]) else None)

    async def held(self, job_id: str, state: str) -> Held:
        def look() -> Held | None:
            newest = self.reports[-1].held if self.reports else ()
            return next((held for held in newest if held.job_id == job_id and held.state == state), None)

        return await self.until(look)

    def lines(self, job_id: str) -> list[bytes]:
        """The journalled lines of a job as they were heard."""
        return [line for event, line in self.heard if event.job_id == job_id and event.n is not None]

    def attempt(self, job_id: str, number: int = 1) -> AttemptFolder:
        return self.root.attempt(job_id, number)

    def journal(self, job_id: str) -> list[bytes]:
        return self.attempt(job_id).journal.read_bytes().splitlines()

    def locks(self) -> list[str]:
        return sorted(path.name for path in self.root.runner(self.settings.runner_name).glob("*.*.lock"))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests that do not kill it; each works under a runner name of its own."""
    settings = Settings(data_root=str(tmp_path_factory.mktemp("r")))
    yield redis_server.ensure(settings)
    redis_server.stop(settings)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Quick to report, quick to lose patience. Programs started with it find the toys."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    return Settings(
        data_root=str(tmp_path),
        redis_url=redis_url,
        runner_id=tmp_path.name.replace("[", "").replace("]", ""),
        report_every_s=0.3,
        stop_grace_s=0.5,
    )


@pytest.fixture
def own_redis(settings: Settings) -> Iterator[Settings]:
    """Settings without an address: the embedded server of this data root, which a test may kill."""
    own = msgspec.structs.replace(settings, redis_url=None)
    yield own
    redis_server.stop(own)


@pytest.fixture
async def listener(settings: Settings) -> AsyncIterator[Front]:
    """The service's side, without a runner."""
    async with listening(settings) as front:
        yield front


@pytest.fixture(name="listening_to")
def listening_to_fixture() -> object:
    return listening


@pytest.fixture(name="running")
def running_fixture() -> object:
    return running


@asynccontextmanager
async def listening(settings: Settings) -> AsyncIterator[Front]:
    line = bus.connect(redis_server.ensure(settings))
    front = Front(settings, line)
    task = asyncio.create_task(front.listen())
    try:
        yield front
    finally:
        await tasks.end(task)
        await line.close()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Runner]:
    """A runner inside this process, stopped as SIGTERM would."""
    stopping = asyncio.Event()
    runner = Runner(settings, (), "toy_recipes")
    task = asyncio.create_task(runner.run(stopping))
    try:
        yield runner
    finally:
        stopping.set()
        await task


@asynccontextmanager
async def front_and_runner(settings: Settings) -> AsyncIterator[Front]:
    async with listening(settings) as front, running(settings):
        await front.until(lambda: front.reports)
        yield front


@pytest.fixture
async def front(settings: Settings) -> AsyncIterator[Front]:
    """A runner that has reported, from the service's side."""
    async with front_and_runner(settings) as front:
        yield front


@pytest.fixture
def program(settings: Settings) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts runners as programs; those that still live at the end are killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(chosen: Settings = settings) -> subprocess.Popen[bytes]:
        environment = os.environ | chosen.to_environment()
        started.append(
            subprocess.Popen([sys.executable, str(HERE / "toy_runner.py")], env=environment, stderr=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def living(settings: Settings) -> Callable[[], dict[int, str]]:
    """pid → command line of what lives for this data root: runners, zygotes, children, and what fled."""
    marker = f"TRAINING_DATA_ROOT={settings.data_root}".encode()

    def look() -> dict[int, str]:
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and marker in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    return look


@pytest.fixture
async def front_with_secrets(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    """A runner whose own environment is full of what children must not see."""
    for name in ("HF_TOKEN", "TRAINING_TOKEN", "TRAINING_TOKEN_FILE", "REDIS_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    async with front_and_runner(msgspec.structs.replace(settings, token="secret", hf_offline=True)) as front:
        yield front
