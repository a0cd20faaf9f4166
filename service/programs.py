"""The programs of one host as one thing: Redis, service and runner, started together, kept alive, stopped together.

Used by `training-api up` and `demo`. The programs are processes of their own; none is imported. They lead their own
sessions, so Ctrl-C reaches only whoever started them, and they end with their starter even if it is killed.
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import httpx
import msgspec
import structlog

from jobs import redis_server
from jobs.errors import Misconfigured
from jobs.paths import DataRoot
from jobs.settings import REFUSED, Settings

log = structlog.get_logger()

_SERVE = (sys.executable, "-m", "service.serve")
_RUNNER = (sys.executable, "-m", "gpu_runner.worker")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # resolved before any fork


class Program:
    """One process that is started again when it dies, ever more slowly when it dies at once."""

    def __init__(
        self, name: str, command: tuple[str, ...], environment: Mapping[str, str], log_file: Path | None
    ) -> None:
        self.name = name
        self._command = command
        self._environment = dict(environment)
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._quick_deaths = 0

    def start(self) -> None:
        output = self._log_file.open("ab") if self._log_file else None
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        finally:
            if output:
                output.close()
        self._started_at = time.monotonic()

    def revive(self) -> None:
        """Start it again if it died.

        Raises:
            Misconfigured: it refuses to run as it is set up, or died five times within its first seconds.
        """
        status = self._process.poll() if self._process else None
        if status is None:
            return
        lived_s = time.monotonic() - self._started_at
        self._quick_deaths = self._quick_deaths + 1 if lived_s < 10 else 0
        if status == REFUSED or self._quick_deaths >= 5:
            raise Misconfigured(f"The {self.name} does not stay up (exit status {status}); its output says why.")
        log.warning("program.died", program=self.name, status=status, lived_s=round(lived_s, 1))
        time.sleep(min(0.2 * 2**self._quick_deaths, 5))
        self.start()

    def ask_to_end(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_for_end(self, within_s: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            log.warning("program.killed", program=self.name, after_s=within_s)
            self._process.kill()
            self._process.wait()


class Programs:
    """Redis, service and runner for one data root. Use as a context: leaving it stops all three."""

    def __init__(self, settings: Settings, *, log_folder: Path | None = None) -> None:
        self.settings = settings
        folder = str(settings.data_folder)  # absolute, so that all programs mean the same one
        environment = dict(os.environ) | msgspec.structs.replace(settings, data_root=folder).to_environment()
        self._service = Program("service", _SERVE, environment, _log(log_folder, "service"))
        self._runner = Program("runner", _RUNNER, environment, _log(log_folder, "runner"))

    def __enter__(self) -> "Programs":
        """Raises Misconfigured, before anything is started, when the data root or the port is somebody else's."""
        self._claim = _claim(DataRoot(self.settings.data_folder))
        if not is_free(self.settings.host, self.settings.port):
            raise Misconfigured(
                f"Port {self.settings.port} of {self.settings.host} is taken: stop what listens there, "
                "or choose another with --port."
            )
        redis_server.ensure(self.settings)
        self._service.start()
        self._runner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.ask_to_end()
        self._runner.wait_for_end(self.settings.stop_grace_s + 10)
        self._service.ask_to_end()
        self._service.wait_for_end(15)
        redis_server.stop(self.settings)
        self._claim.close()

    def revive(self) -> None:
        """Start whatever died again; call it now and then."""
        redis_server.ensure(self.settings)
        self._service.revive()
        self._runner.revive()

    def wait_until_ready(self, within_s: float = 120, on_wait: Callable[[], None] = lambda: None) -> None:
        """Until the service answers and a runner reports.

        Raises:
            Misconfigured: a program refuses to start, or the time is over.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.revive()
            if health(self.settings.address, self.settings.token) == "healthy":
                return
            on_wait()
            time.sleep(0.1)
        address = self.settings.address
        raise Misconfigured(f"The service at {address} is not ready after {within_s:g} s; its output says why.")


def health(address: str, token: str | None = None) -> str | None:
    """`healthy` or `degraded` if a service of ours answers there, else None."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        body = httpx.get(f"{address}/health", headers=headers, timeout=2, trust_env=False).json()
        return str(body["status"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None


def is_free(host: str, port: int) -> bool:
    """Whether a program may listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _claim(root: DataRoot) -> TextIO:
    """A lock that says whose Redis, service and runner these are; it holds until it is closed.

    Raises:
        Misconfigured: another one holds it.
    """
    root.folder.mkdir(parents=True, exist_ok=True)
    lock = root.programs_lock.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Misconfigured(
            f"`training-api up` or `demo` already runs on {root.folder}: use that one, or give this one another "
            "--data-root."
        ) from None
    return lock


def _log(folder: Path | None, name: str) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def _end_with_parent() -> None:
    """In the child, before exec: SIGTERM when the starter dies, even by SIGKILL. Source: prctl(2)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
