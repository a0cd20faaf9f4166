"""The real programs, each benchmark's on a data root and a port of its own, ended with it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from jobs import redis_server
from jobs.settings import Settings
from service.programs import free_port

_READY_WITHIN_S = 60
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Served:
    """A program that answers HTTP."""

    address: str
    pid: int
    root: Path

    @property
    def cpu_s(self) -> float:
        """Processor time of all its threads so far."""
        ticks = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]  # user and system
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def service(**settings: object) -> Iterator[Served]:
    """The service alone, as `training-api serve` starts it, with an embedded Redis and no runner."""
    with scratch(**settings) as chosen:
        redis_server.ensure(chosen)
        try:
            with program(
                "service.serve", port=chosen.port, root=chosen.data_folder, **chosen.to_environment()
            ) as served:
                yield served
        finally:
            redis_server.stop(chosen)


@contextmanager
def program(module: str, *, port: int, root: Path, **environment: str) -> Iterator[Served]:
    """A module as a process, once it answers on its port; what it says goes to `<root>/<module>.log`."""
    with (root / f"{module}.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module], env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        served = Served(f"http://{_HOST}:{port}", process.pid, root)
        _wait_until_it_answers(served, process, module)
        yield served
    finally:
        process.terminate()
        process.wait()


@contextmanager
def scratch(**given: object) -> Iterator[Settings]:
    """Settings of a data root that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as root:
        plain = Settings(data_root=root, host=_HOST, port=free_port(_HOST), hf_offline=True)
        yield msgspec.structs.replace(plain, **given)


def _wait_until_it_answers(served: Served, process: "subprocess.Popen[bytes]", module: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{served.address}/health", trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    said = (served.root / f"{module}.log").read_text()[-2000:]
    raise RuntimeError(f"{module} does not answer at {served.address}. It said:\n{said}")
