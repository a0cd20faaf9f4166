"""The runner: `python -m gpu_runner.worker`, one process a host, arq's workers inside. Settings from the environment.

SIGTERM and SIGINT end it: children get the grace to save, then everything ends and the exit status is 0. It is 2, with
a sentence on stderr, when the runner cannot run as it is set up.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from gpu_runner import forker, processes
from gpu_runner.attempts import Attempts
from gpu_runner.devices import Devices
from gpu_runner.forker import Forker
from gpu_runner.intake import FUNCTION, Intake
from gpu_runner.publisher import Publisher
from gpu_runner.recipes import RECIPES
from gpu_runner.reporter import Reporter
from gpu_runner.supervisor import Supervisor
from jobs import bus, keys, logs, redis_server, tasks
from jobs.bus import UNREACHABLE
from jobs.errors import Misconfigured
from jobs.events import Device
from jobs.paths import DataRoot
from jobs.settings import REFUSED, Settings
from jobs.specs import Slot

log = structlog.get_logger()

RECIPES_MODULE = "gpu_runner.recipes"
"""What gives children their work: a module with `recipe(kind)`."""
_STACK = (
    "torch",
    "numpy",
    "PIL.Image",
    "pycocotools.mask",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llava.modeling_llava",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_JOB_S = 365 * 86_400
_QUEUED_AT_MOST_MS = 8 * 7 * 86_400_000
_LOOK_AFTER_REDIS_S = 0.5
_AFTER_GRACE_S = 5.0
_FLUSH_S = 2.0
_pack = msgspec.msgpack.Encoder(enc_hook=repr).encode  # arq packs its own exceptions: of a job that it gave up, say


def preload(has_cuda: bool) -> tuple[str, ...]:
    """What the zygote imports. The recipes load peft, peft loads bitsandbytes, and that asks a GPU for its abilities,
    which initialises CUDA: on a host with GPUs each child imports these three itself."""
    return _STACK if has_cuda else (*_STACK, *RECIPES.values())


class Runner:
    """All parts of one runner, wired; `run` is its life."""

    def __init__(self, settings: Settings, preloaded: Sequence[str] | None, recipes: str) -> None:
        name = settings.runner_name
        devices = Devices(settings, os.environ)
        listed = devices.read()
        self._settings = settings
        self._bus = bus.connect(redis_server.address(settings))
        self._pool = _pool(redis_server.address(settings))
        self._attempts = Attempts(DataRoot(settings.data_folder), name)
        self._publisher = Publisher(self._bus)
        self._reporter = Reporter(
            runner_id=name,
            every_s=settings.report_every_s,
            bus=self._bus,
            devices=devices,
            attempts=self._attempts,
            publisher=self._publisher,
        )
        modules = preload(devices.has_cuda) if preloaded is None else preloaded
        self._forker = Forker(forker.environment(settings, os.environ), modules)
        self._supervisor = Supervisor(
            runner_id=name,
            recipes=recipes,
            devices=listed,
            stop_grace_s=settings.stop_grace_s,
            hang_after_s=settings.hang_after_s,
            forker=self._forker,
            publisher=self._publisher,
            changed=self._reporter.changed,
        )
        self._intake = Intake(
            runner_id=name,
            bus=self._bus,
            pool=self._pool,
            attempts=self._attempts,
            supervisor=self._supervisor,
            publisher=self._publisher,
            changed=self._reporter.changed,
        )
        self._hearing = asyncio.Event()
        self._workers = {slot: self._worker(slot, count) for slot, count in _slots(listed).items()}

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until asked to stop. A part that breaks takes the rest down, to be started anew."""
        for attempt in await asyncio.to_thread(self._attempts.recover):
            log.warning("attempt.recovered", job_id=attempt.job_id, attempt=attempt.number)
            self._publisher.follow(attempt, attempt.old_n)
        try:
            async with asyncio.TaskGroup() as group:
                lasting = [group.create_task(part) for part in (self._forker.run(), self._publisher.run())]
                lasting.append(group.create_task(self._keep_redis()))
                working = [group.create_task(part) for part in (self._hear(), self._report_forever())]
                working += [group.create_task(self._work(slot)) for slot in self._workers]
                await stopping.wait()
                await self._wind_down(working)
                await tasks.end(*lasting)
        finally:
            await self._bus.close()
            await self._pool.aclose()

    async def _wind_down(self, working: Sequence[asyncio.Task[None]]) -> None:
        """No new work; what runs may save its state, and is then ended."""
        log.info("runner.stopping")
        await tasks.end(*working)
        self._reporter.stopping = True
        await self._report()
        unfinished = [attempt for attempt in self._attempts if attempt.state != "finished"]
        try:
            async with asyncio.timeout(self._settings.stop_grace_s + _AFTER_GRACE_S):
                await asyncio.gather(*map(self._supervisor.interrupt, unfinished))
        except TimeoutError:
            log.error("runner.stopped_early", why="an attempt did not end; the next start of this runner ends it")
        await self._publisher.flush(_FLUSH_S)
        await self._report()
        queued = [task for worker in self._workers.values() for task in worker.tasks.values()]
        if queued:
            await asyncio.wait(queued, timeout=_FLUSH_S)  # arq puts away what it knows of them

    # -- the parts' loops

    async def _hear(self) -> None:
        await self._intake.begin()
        self._hearing.set()
        await self._intake.listen()

    async def _report_forever(self) -> None:
        """Report, once commands that answer a report will be heard."""
        await self._hearing.wait()
        while True:
            if await self._report():
                with contextlib.suppress(*UNREACHABLE):
                    await self._intake.requeue()
            await self._reporter.until_due()

    async def _report(self) -> bool:
        try:
            await self._reporter.report()
        except UNREACHABLE:
            return False
        return True

    async def _keep_redis(self) -> None:
        """Start the embedded Redis again when it is gone."""
        while self._settings.redis_url is None:
            if not await self._bus.is_reachable():
                await _ensure_redis(self._settings)
            await asyncio.sleep(_LOOK_AFTER_REDIS_S)

    async def _work(self, slot: Slot) -> None:
        """Let arq take jobs from the queue of one kind of slot; its worker gives up when Redis stays away."""
        while True:
            try:
                await self._workers[slot].async_run()
            except Exception as error:  # Redis, after two minutes
                log.warning("queue.interrupted", slot=slot, error=repr(error))
                await asyncio.sleep(_LOOK_AFTER_REDIS_S)

    def _worker(self, slot: Slot, count: int) -> Worker:
        runner_id = self._settings.runner_name
        run_job = func(self._run_job, name=FUNCTION, keep_result=0, timeout=_LONGEST_JOB_S, max_tries=1)
        return Worker(
            functions=[run_job],
            redis_pool=self._pool,
            queue_name=keys.queue(runner_id, slot),
            health_check_key=keys.queue_health(runner_id, slot),
            health_check_interval=5,
            handle_signals=False,
            max_jobs=count,
            poll_delay=0.05,
            retry_jobs=False,
            job_serializer=_pack,
            job_deserializer=msgspec.msgpack.decode,
            expires_extra_ms=_QUEUED_AT_MOST_MS,
        )

    async def _run_job(self, _: dict[Any, Any], job_id: str, attempt: int) -> None:
        """arq's function: an attempt that is no longer held, or runs already, is skipped."""
        held = self._attempts.get(job_id, attempt)
        if held is not None:
            await self._supervisor.execute(held)


async def serve(settings: Settings, preloaded: Sequence[str] | None = None, recipes: str = RECIPES_MODULE) -> None:
    """Run until SIGTERM or SIGINT. `preloaded` modules instead of the model stack's, `recipes` instead of ours.

    Raises:
        Misconfigured: this host, the settings or another runner do not allow it.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with _only_one(settings):
        await asyncio.to_thread(redis_server.ensure, settings)
        processes.adopt_orphans()
        log.info("runner.starting", runner_id=settings.runner_name, data_root=str(settings.data_folder))
        await Runner(settings, preloaded, recipes).run(stopping)


async def _ensure_redis(settings: Settings) -> None:
    processes.adopt_orphans(False)  # the server must not become ours: what is handed to us is ended
    try:
        await asyncio.to_thread(redis_server.ensure, settings)
    except Misconfigured as error:
        log.error("redis.not_started", error=error.message)
    finally:
        processes.adopt_orphans()


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the runner's name on this host."""
    name = settings.runner_name
    if sys.platform != "linux":
        raise Misconfigured("A runner needs Linux: it owns its processes by means other systems do not have.")
    if not _PLAIN_NAME.fullmatch(name):
        raise Misconfigured(f"TRAINING_RUNNER_ID={name!r}: use letters, digits, '.', '_' and '-' only.")
    folder = DataRoot(settings.data_folder).runner(name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"A runner named {name!r} already works for this data root: stop it, or give this one another name "
                "with TRAINING_RUNNER_ID."
            ) from None
        yield


def _pool(url: str) -> ArqRedis:
    """arq's connections. They outlast a Redis that is away for two minutes; with fewer retries a worker stops."""
    pool: ArqRedis = ArqRedis.from_url(
        url,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 240),
        retry_on_timeout=True,
        retry_on_error=[exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, OSError],
        socket_connect_timeout=3,
        socket_timeout=10,
    )
    pool.job_serializer, pool.job_deserializer = _pack, msgspec.msgpack.decode
    pool.expires_extra_ms = _QUEUED_AT_MOST_MS
    return pool


def _slots(devices: Sequence[Device]) -> dict[Slot, int]:
    """How many jobs of each sort run at once, over all devices."""
    return {slot: sum(device.slots.get(slot, 0) for device in devices) for slot in Slot}


def main() -> int:
    """The exit status."""
    try:
        settings = Settings.from_environment()
        logs.set_up(settings.log_level)
        asyncio.run(serve(settings))
    except Misconfigured as error:
        sys.stderr.write(f"gpu_runner.worker: {error.message}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
