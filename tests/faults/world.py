"""A small world to break: Redis, service and runners as real processes, jobs, listeners, and who starts what again.

One thread drives it: `run` carries out what a schedule wants at its time and starts what died, as `up` would, until
every job has ended; `settle` waits until nothing moves any more. `invariants` then says what is wrong.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_trainer
import msgspec
import plan
import redis
import seams
from listeners import Listener, StreamListener
from processes import processes_of
from proxy import Proxy

from gpu_runner.worker import preload
from jobs import redis_server
from jobs.calls import Json
from jobs.client import Client
from jobs.errors import RemoteProblem, Unreachable
from jobs.lifecycle import TERMINAL
from jobs.paths import DataRoot
from jobs.settings import Settings
from service.programs import free_port, health

HERE = Path(__file__).parent
PATIENCE = float(os.environ.get("FAULTS_PATIENCE", "1"))
"""Factor on every bound, for machines that are slower or busier than two free cores."""
SETTLE_WITHIN_S = 300.0
"""How long anything that has to come may take before it is called hanging. This says nothing of speed, which a busy
machine lacks: what is promised of times is asserted where it is measured."""
_LOOK_EVERY_S = 0.03
_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Violation(AssertionError):
    """An invariant does not hold; the message has the seed."""


@dataclass
class Member:
    """A program of the world. While `held` nobody starts it again; otherwise it comes back after `pause_s`."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    held: bool = False
    pause_s: float = 0.1
    died_at: float | None = None
    deaths: int = 0

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.died_at = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def revive(self) -> None:
        """Start it again when it has been dead for long enough."""
        if self.held or self.is_alive:
            return
        now = time.monotonic()
        if self.died_at is None:
            self.died_at, self.deaths = now, self.deaths + 1
        if now - self.died_at >= self.pause_s:
            self.start()

    def end(self, within_s: float) -> int | None:
        """Ask it to end; its exit status, None when it had to be killed."""
        if self.process is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


@dataclass
class Expected:
    """What must become of a job. `series` and `weights` are those of the uninterrupted run, or `twin` is that run."""

    job_id: str
    ends: set[str]
    series: dict[int, float] | None = None
    weights: bytes | None = None
    twin: str | None = None
    accepted_at: float = field(default_factory=time.time)


class World:
    """One data root with everything that works on it. Use as a context."""

    def __init__(
        self,
        root: Path,
        *,
        trainer: str = "fake_trainer",
        runners: int = 1,
        behind_proxies: bool = False,
        **changes: Any,
    ) -> None:
        quick: dict[str, Any] = {
            "data_root": str(root),
            "port": free_port("127.0.0.1"),
            "lease_s": 2.0 * PATIENCE,
            "report_every_s": 0.25,
            "stop_grace_s": 2.0,
            "gpu_slots": 3,
            "max_attempts": 50,  # only the poison test is about giving up
            "hf_offline": True,
            "log_level": "info",
        }
        self.settings = Settings(**quick | changes)
        self.root = DataRoot(self.settings.data_folder)
        self.trainer = trainer
        self.jobs: dict[str, Expected] = {}
        self.unchecked: list[str] = []
        self.listeners: list[Listener] = []
        self.faults: list[str] = []
        self.kills: list[tuple[float, str]] = []
        self.config: Json = {}  # of the real trainer's jobs, and the one of them that nothing happened to
        self.twin = ""
        self.proxies: dict[str, Proxy] = {}
        if behind_proxies:
            self.proxies = {name: Proxy(_socket_of(self.settings)) for name in ("service", "runner")}
        for proxy in self.proxies.values():
            proxy.begin()
        (self.root.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.service = self._member("service", "service_program.py", redis_url=self._redis_url("service"))
        self.runners = [
            self._member(name, "runner_program.py", trainer, runner_id=name, redis_url=self._redis_url("runner"))
            for name in (f"runner-{number}" for number in range(runners))
        ]
        self.client = Client(self.settings.address, timeout_s=(60 if trainer == "real_trainer" else 20) * PATIENCE)

    def _member(self, name: str, program: str, *arguments: str, **changes: Any) -> Member:
        settings = msgspec.structs.replace(self.settings, **changes)
        own = {name: value for name, value in os.environ.items() if not name.startswith("TRAINING_")}
        path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        environment = own | settings.to_environment() | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(HERE / program), *arguments]
        return Member(name, command, environment, self.root.folder / "logs" / f"{name}.log")

    def _redis_url(self, name: str) -> str | None:
        return f"redis://127.0.0.1:{self.proxies[name].port}/0" if self.proxies else None

    # -- begin and end

    def __enter__(self) -> "World":
        dataset = self.root.datasets / "rows"
        dataset.mkdir(parents=True)
        (dataset / "train.jsonl").write_text("{}\n")
        _compile(self.trainer)
        redis_server.ensure(self.settings)
        for member in self.members:
            member.start()
        self.until(lambda: health(self.settings.address) == "healthy", "the world did not start")
        self.listen(None)
        self._begin(StreamListener(self.settings.address))
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self.listeners:
            listener.leave()
        statuses = {member.name: member.end(self.settings.stop_grace_s + 10) for member in self.members[::-1]}
        redis_server.stop(self.settings)
        for proxy in self.proxies.values():
            proxy.stop()
        self.client.close()
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left or None in statuses.values():
            self.faults.append(f"after the end: left {left}, exit statuses {statuses}")

    @property
    def members(self) -> list[Member]:
        return [self.service, *self.runners]

    @property
    def runner(self) -> Member:
        return self.runners[0]

    # -- jobs

    def spec(
        self, seed: int, *, steps: int = 40, save_steps: int = 5, logging_steps: int = 2, tags: Iterable[str] = ()
    ) -> Json:
        config = {
            "model_name": "demo-llava",
            "train_data_path": "rows/train.jsonl",
            "seed": seed,
            "max_steps": steps,
            "save_steps": save_steps,
            "logging_steps": logging_steps,
            "save_total_limit": 2,
            "device": "cpu",
        }
        return {"kind": "finetune", "config": config, "tags": list(tags)}

    def submit(self, spec: Json, *, ends: Iterable[str] = ("completed",)) -> str | None:
        """Submit a job of the fake trainer; None when nobody answered that it was accepted."""
        try:
            job_id = self.client.submit(spec)
        except Unreachable:
            return None
        except RemoteProblem as error:
            if error.status >= 500:
                return None
            raise
        config = spec["config"]
        series, weights = fake_trainer.undisturbed(config["seed"], config["max_steps"], config["logging_steps"])
        self.expect(Expected(job_id, set(ends), series, weights))
        return job_id

    def submit_surely(self, spec: Json, *, ends: Iterable[str] = ("completed",)) -> str:
        """Submit until somebody accepts it."""
        accepted: str = self.until(lambda: self.submit(spec, ends=ends), "nobody accepts a job")
        return accepted

    def expect(self, expected: Expected) -> None:
        self.jobs[expected.job_id] = expected
        self.unchecked.append(expected.job_id)

    def listen(self, job_id: str | None, after: int = 0) -> Listener:
        return self._begin(Listener(self.settings.address, job_id, after))

    def _begin(self, listener: Listener) -> Listener:
        listener.start()
        self.listeners.append(listener)
        return listener

    # -- what is true

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Read the database as it is, whoever lives."""
        with contextlib.closing(sqlite3.connect(f"file:{self.root.database}?mode=ro", uri=True, timeout=5)) as database:
            return database.execute(sql, values).fetchall()

    def statuses(self) -> dict[str, str]:
        return dict(self.rows("SELECT job_id, status FROM jobs"))

    def status(self, job_id: str) -> str:
        return self.statuses().get(job_id, "unknown")

    def step(self, job_id: str) -> int:
        """The last step that was recorded of a job."""
        return int(self.rows("SELECT coalesce(max(step), 0) FROM metrics WHERE job_id = ?", job_id)[0][0])

    @property
    def unended(self) -> dict[str, str]:
        ended = ", ".join(f"'{status}'" for status in TERMINAL)
        return dict(self.rows(f"SELECT job_id, status FROM jobs WHERE status NOT IN ({ended})"))

    def processes(self) -> dict[int, str]:
        """pid → command line of every living process of this data root."""
        return processes_of(self.root.folder)

    def children(self) -> list[int]:
        """The processes that execute jobs: they hold an attempt's lock, and the runner does not."""
        locks = {str(path) for path in self.root.folder.glob("runners/*/*.lock") if path.name != "runner.lock"}
        members = {member.pid for member in self.members}
        return [pid for pid in self.processes() if pid not in members and locks & set(_open_files(pid))]

    def zygotes(self) -> list[int]:
        return [
            pid
            for pid, command in self.processes().items()
            if "gpu_runner.zygote" in command and pid not in self.children()
        ]

    def redis_pid(self) -> int | None:
        try:
            return int((self.root.redis / "pid").read_text())
        except (OSError, ValueError):
            return None

    def redis(self) -> "redis.Redis":
        return redis.Redis.from_url(redis_server.address(self.settings), socket_timeout=2)

    # -- time

    def tick(self) -> None:
        """What an operator's supervisor does: start again what died."""
        for member in self.members:
            member.revive()

    def until(self, is_so: Callable[[], Any], otherwise: str, within_s: float = SETTLE_WITHIN_S) -> Any:
        """Wait, keeping the world alive. Raises Violation."""
        deadline = time.monotonic() + within_s * PATIENCE
        while True:
            self.tick()
            with contextlib.suppress(sqlite3.OperationalError):  # the database is being made, or restored
                if answer := is_so():
                    return answer
            if time.monotonic() > deadline:
                raise Violation(f"{otherwise}\n{self.describe()}")
            time.sleep(_LOOK_EVERY_S)

    def pass_time(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tick()
            time.sleep(_LOOK_EVERY_S)

    def run(self, schedule: Iterable[tuple[float, Callable[[], None]]]) -> None:
        """Carry out each action at its time, in seconds from now."""
        began = time.monotonic()
        for at_s, action in sorted(schedule, key=lambda entry: entry[0]):
            self.pass_time(began + at_s - time.monotonic())
            action()

    def settle(self) -> float:
        """Wait until every job has ended; the seconds it took. Raises Violation."""
        began = time.monotonic()
        for member in self.members:
            member.signal(signal.SIGCONT)
            member.held = False
        self.until(lambda: not self.unended, "jobs did not end")
        return time.monotonic() - began

    def until_gone(self, is_gone: Callable[[], bool]) -> float:
        """Wait until nothing is left that should be gone, such as a zygote whose runner was killed this moment; the
        seconds it took. What is left after all is for the judge."""
        began = time.monotonic()
        while not is_gone() and time.monotonic() - began < plan.GONE_WITHIN_S * PATIENCE:
            self.tick()
            time.sleep(_LOOK_EVERY_S)
        return time.monotonic() - began

    def catch_up(self) -> None:
        """Wait until all listeners have heard everything, and the programs are well. Raises Violation."""
        head = self.rows("SELECT coalesce(max(seq), 0) FROM events")[0][0]
        self.until(
            lambda: all(not one.is_alive() or one.job_id or one.position >= head for one in self.listeners),
            f"a listener did not hear event {head}",
        )
        self.until(lambda: all(not one.is_alive() for one in self.listeners if one.job_id), "a job's listener hangs")
        self.until(lambda: health(self.settings.address) == "healthy", "the world is not as it was")

    def _locks(self) -> list[str]:
        return [path.name for path in self.root.folder.glob("runners/*/*.lock") if path.name != "runner.lock"]

    def describe(self) -> str:
        """What there is to see when something is wrong."""
        lines = [f"not ended: {self.unended}", f"locks: {self._locks()}", f"processes: {self.processes()}"]
        lines += [f"{one.name}: at {one.position}, fault {one.fault}" for one in self.listeners if one.is_alive()]
        for member in self.members:
            tail = member.log.read_text(errors="replace").splitlines()[-25:] if member.log.exists() else []
            lines += [f"-- {member.name} (alive: {member.is_alive}, deaths: {member.deaths})", *tail]
        return "\n".join(lines)

    # -- breaking it

    def kill(self, target: str) -> bool:
        """SIGKILL the service, a runner, a child, the zygote or Redis; False when there is no such process."""
        pid = self._pid_of(target)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills.append((time.time(), target))
        return True

    def _pid_of(self, target: str) -> int | None:
        if target == "service":
            return self.service.pid if self.service.is_alive else None
        if target == "runner":
            return self.runner.pid if self.runner.is_alive else None
        if target == "redis":
            return self.redis_pid()
        found = self.children() if target == "child" else self.zygotes()
        return found[0] if found else None

    def signal(self, pid: int | None, number: int) -> None:
        """To a process that may be gone."""
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def arm(self, seam: str, nth: int) -> None:
        seams.arm(self.root.folder, seam, nth)

    @contextlib.contextmanager
    def stopped(self, member: Member) -> Iterator[None]:
        """SIGSTOP within, SIGCONT behind."""
        member.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            member.signal(signal.SIGCONT)


@functools.cache
def _compile(trainer: str) -> None:
    """Leave the programs' bytecode on the disk, where it may be missing: they are started hundreds of times, and write
    none themselves, because one that dies or has no room would leave half of it."""
    imports = ["service_program", "runner_program", "service.app", "gpu_runner.zygote", trainer]
    if trainer == "real_trainer" and not _is_compiled("transformers"):
        imports += preload(has_cuda=False)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    subprocess.run([sys.executable, "-c", f"import {', '.join(imports)}"], env=environment, check=True)


def _is_compiled(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.cached is not None and Path(spec.cached).exists()


def _socket_of(settings: Settings) -> str:
    address = redis_server.address(settings)
    assert address.startswith("unix://"), "the proxy needs a data root whose path can name a socket"
    return address.removeprefix("unix://")


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
