"""How late an event reaches many sockets, against Litestar's channels plugin: `channels.py`.

Run it with `python -m benchmarks live`; it takes about three minutes. The service is the real one: what the source
says goes through Redis, is committed to SQLite, and only then to the sockets. The baseline keeps nothing.
"""

import asyncio
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from benchmarks import channels, programs
from benchmarks.listeners import Heard
from benchmarks.programs import Served
from benchmarks.report import Report, at_most
from benchmarks.source import Publish, Source
from jobs import redis_server
from jobs.settings import Settings
from service.programs import free_port

CLAIM = "A thousand sockets hear 200 events a second, all of them in order, a blink after they were said."

SAY_FOR_S = 10
_WITHIN_S = 60
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Load:
    """So many sockets, each told so many events a second of so many jobs."""

    sockets: int
    rate: int
    jobs: int

    def __str__(self) -> str:
        return f"{self.sockets:,} × {self.rate}/s, {self.jobs} job{'s' if self.jobs > 1 else ''}"


LOADS = (Load(200, 50, 1), Load(200, 50, 5), Load(1000, 200, 1), Load(1000, 200, 5))


@dataclass(frozen=True)
class Measured:
    """What the sockets heard, and what it cost the process that told them."""

    heard: Heard
    cpu: float
    load_cpu: float
    memory_mib: float


def run(loads: Sequence[Load] = LOADS) -> Report:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # inherited by the servers
    both = [(load, *asyncio.run(_measure(load))) for load in loads]
    return Report(
        claim=CLAIM,
        setup=f"A source says `metrics.logged` for {SAY_FOR_S} s. Sockets and source are processes of their own; all "
        "share the machine's cores. One job is watched on its own socket's address, several on the one of all jobs. "
        "The time runs from the event's own `at` to its arrival in the client; CPU is of one core, memory of the "
        "server at the end. An event counts once for each socket; `p99 ×` is against the plugin.",
        columns=("", "p50 ms", "p99 ms", "p99 ×", "worst ms", "in order", "messages", "CPU", "clients' CPU", "MiB"),
        rows=[
            row
            for load, ours, baseline in both
            for row in (_row(f"{load}", ours, baseline), _row(f"{load}, channels plugin", baseline, baseline))
        ],
        aims=[
            aim
            for load, ours, _ in both
            for aim in (
                at_most(f"{load}: p99", ours.heard.p99_ms, 150, "ms"),
                at_most(f"{load}: sockets with a hole", ours.heard.sockets - ours.heard.complete, 0, "sockets"),
            )
        ],
    )


async def _measure(load: Load) -> tuple[Measured, Measured]:
    """Ours, and the baseline on the same Redis."""
    with programs.service() as served:
        url = redis_server.address(Settings(data_root=str(served.root)))
        async with Source(url, load.jobs) as source:
            job_ids = await asyncio.to_thread(start_jobs, served, load.jobs)
            await source.all_started()
            path = f"/api/train/{job_ids[0]}/ws" if load.jobs == 1 else "/api/ws"
            ours = await _tell(served, path, load, source, source.bus.publish)
            port = free_port("127.0.0.1")
            environment = {"TRAINING_PORT": str(port), "REDIS_URL": url}
            with programs.program("benchmarks.channels", port=port, root=served.root, **environment) as baseline:
                transport = channels.backend(url)

                async def publish(messages: Sequence[bytes]) -> None:
                    for message in messages:
                        await transport.publish(message, [channels.CHANNEL])

                return ours, await _tell(baseline, f"/{channels.CHANNEL}", load, source, publish)


def start_jobs(served: Served, count: int) -> list[str]:
    """Trainings that the source will be given."""
    dataset = served.root / "datasets" / "made" / "train.jsonl"
    dataset.parent.mkdir(parents=True)
    dataset.write_text("{}\n")
    body = {"config": {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}}
    with httpx.Client(base_url=served.address, trust_env=False) as client:
        answers = [client.post("/api/train/start", json=body).raise_for_status().json() for _ in range(count)]
    return [answer["job_id"] for answer in answers]


async def _tell(served: Served, path: str, load: Load, source: Source, publish: Publish) -> Measured:
    """Open the sockets, let the source speak, and wait until every socket has heard all or the time is over."""
    count = load.rate * SAY_FOR_S
    arguments = (served.address, path, str(load.sockets), str(count), str(_WITHIN_S))
    listeners = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.listeners", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert listeners.stdout is not None
    try:
        await asyncio.wait_for(listeners.stdout.readuntil(b"ready\n"), _WITHIN_S)
        await asyncio.sleep(1)  # sockets are open a moment before they are subscribed
        began, before_s = time.monotonic(), served.cpu_s
        await source.log_metrics(publish, count, load.rate)
        said = await asyncio.wait_for(listeners.stdout.read(), 2 * _WITHIN_S)
    finally:
        if listeners.returncode is None:
            listeners.terminate()
        await listeners.wait()
    took_s = time.monotonic() - began
    heard = msgspec.json.decode(said.splitlines()[-1], type=Heard)
    spent_s = served.cpu_s - before_s
    return Measured(heard, spent_s / took_s, heard.cpu_s / took_s, _memory_mib(served.pid))


def _memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20


def _row(what: str, of: Measured, baseline: Measured) -> tuple[str, ...]:
    heard = of.heard
    ratio = heard.p99_ms / baseline.heard.p99_ms
    late = (f"{heard.p50_ms:,.0f}", f"{heard.p99_ms:,.0f}", f"{ratio:.2g}", f"{heard.worst_ms:,.0f}")
    complete = "all" if heard.complete == heard.sockets else f"**{heard.complete:,} of {heard.sockets:,}**"
    return what, *late, complete, f"{heard.messages:,}", f"{of.cpu:.0%}", f"{of.load_cpu:.0%}", f"{of.memory_mib:.0f}"


if __name__ == "__main__":
    print(run().as_markdown())
