"""How late an event reaches many sockets, and how quickly they come back, against Litestar's channels plugin.

Run it with `python -m benchmarks live`; it takes about six minutes. The service is the real one: what the source
says goes through Redis, is committed to SQLite, and only then to the sockets. The baseline (`channels.py`) keeps
nothing.
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
from benchmarks.listeners import Heard, Task
from benchmarks.programs import Served
from benchmarks.report import Report, at_most
from benchmarks.source import Publish, Source
from jobs import redis_server
from jobs.settings import Settings
from service.programs import free_port

CLAIM = "A thousand sockets hear 500 events a second, all of them in order, a blink after they were said."

SAY_FOR_S = 10
NOTE_EVERY = 10  # events of class A among those of class B
_WITHIN_S = 60
_ROUNDS = 7  # of a load without and with stalled sockets, in turn
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FAR_BEHIND = 10_000
_AWAY = 1_000  # events that happened while a thousand sockets were away


@dataclass(frozen=True)
class Load:
    """So many sockets, each told so many events a second of so many jobs; some of them take nothing."""

    sockets: int
    rate: int
    jobs: int
    stalled: int = 0

    def __str__(self) -> str:
        jobs = f"{self.jobs} job{'s' if self.jobs > 1 else ''}"
        return f"{self.sockets:,} × {self.rate}/s, {jobs}{f', {self.stalled} stalled' if self.stalled else ''}"


COMPARED = (Load(200, 50, 5), Load(1000, 200, 5))
FULL = Load(1000, 500, 5)
STALLED = Load(1000, 500, 5, stalled=100)


@dataclass(frozen=True)
class Measured:
    """What the sockets heard, and what it cost the process that told them."""

    heard: Heard
    cpu: float
    load_cpu: float
    memory_mib: float


@dataclass(frozen=True)
class Promised:
    """The full load in turn without and with stalled sockets, and then who comes back."""

    plain: Sequence[Measured]
    stalled: Sequence[Measured]
    returning: Heard
    far_behind: Heard
    memory_mib: float


def run(compared: Sequence[Load] = COMPARED) -> Report:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # inherited by the servers
    promised = asyncio.run(_promise())
    both = [(load, *asyncio.run(_measure(load))) for load in compared]
    plain, stalled = _median(promised.plain), _median(promised.stalled)
    rows = [
        *(_row(f"{FULL}", each) for each in promised.plain),
        *(_row(f"{STALLED}", each) for each in promised.stalled),
        *(
            row
            for load, ours, baseline in both
            for row in (_row(f"{load}", ours, baseline), _row(f"{load}, channels plugin", baseline, baseline))
        ),
    ]
    p99_ms, stalled_p99_ms = plain.heard.p99_ms, stalled.heard.p99_ms
    returned = {_AWAY: promised.returning, _FAR_BEHIND: promised.far_behind}
    everyone = [*promised.plain, *promised.stalled, *(ours for _, ours, _ in both)]
    holes = sum(each.heard.sockets - each.heard.complete for each in everyone)
    holes += sum(heard.replayed < behind for behind, heard in returned.items())
    return Report(
        claim=CLAIM,
        setup=f"A source says `metrics.logged` for {SAY_FOR_S} s, at the full load of {FULL.rate}/s every "
        f"{NOTE_EVERY}th event is a `job.noted`. Sockets and source are processes of their own; all share the "
        "machine's cores. Each socket subscribes to all jobs. The time runs from the event's own `at` to its arrival "
        "in the client; CPU is of one core, memory of the server at the end. An event counts once for each socket; "
        f"`p99 ×` is against the plugin. The full load runs {_ROUNDS} times without and with sockets that take "
        f"nothing, in turn; medians count. Then {FULL.sockets:,} sockets come back at once, {_AWAY:,} events behind, "
        f"while the source speaks on, and one comes back {_FAR_BEHIND:,} behind: the time runs from the first "
        "connection to the frame that says that nothing is missing.",
        columns=("", "p50 ms", "p99 ms", "p99 ×", "worst ms", "in order", "messages", "CPU", "clients' CPU", "MiB"),
        rows=rows,
        aims=[
            at_most(f"{FULL}: p99", p99_ms, 150, "ms"),
            at_most(f"{FULL}: memory of the service", promised.memory_mib, 150, "MiB"),
            at_most("p99 of the others with 10 % stalled, change", 100 * (stalled_p99_ms / p99_ms - 1), 10, "%"),
            at_most(f"{FULL.sockets:,} come back at once: all caught up", promised.returning.caught_up_s, 5, "s"),
            at_most(f"{_FAR_BEHIND:,} events behind: caught up", promised.far_behind.caught_up_s, 1, "s"),
            *(at_most(f"{load}: p99", ours.heard.p99_ms, 150, "ms") for load, ours, _ in both),
            at_most("sockets with a hole, of all runs", holes, 0, "sockets"),
        ],
    )


async def _promise() -> Promised:
    with programs.service() as served:
        url = redis_server.address(Settings(data_root=str(served.root)))
        async with Source(url, FULL.jobs) as source:
            await asyncio.to_thread(start_jobs, served, FULL.jobs)
            await source.all_started()
            plain: list[Measured] = []
            stalled: list[Measured] = []
            for _ in range(_ROUNDS):
                plain.append(await _tell(served, FULL, source, source.bus.publish, note_every=NOTE_EVERY))
                stalled.append(await _tell(served, STALLED, source, source.bus.publish, note_every=NOTE_EVERY))
            speaking = asyncio.create_task(source.log_metrics(source.bus.publish, FULL.rate * SAY_FOR_S, FULL.rate))
            await asyncio.sleep(1)
            returning = await _return(served, FULL.sockets, _AWAY)
            await speaking
            far_behind = await _return(served, 1, _FAR_BEHIND)
            return Promised(plain, stalled, returning, far_behind, _memory_mib(served.pid))


async def _return(served: Served, sockets: int, behind: int) -> Heard:
    """So many sockets at once, so many events behind the newest."""
    async with httpx.AsyncClient(base_url=served.address, trust_env=False) as client:
        (newest, *_) = (await client.get("/api/jobs", params={"limit": 1})).json()["jobs"]
    after = max(1, newest["last_seq"] - behind)
    return await _listen(Task(address=served.address, path="/api/ws", sockets=sockets, after=after))


async def _listen(task: Task) -> Heard:
    """Of sockets that only come and catch up."""
    listeners = await _listeners(task)
    said, _ = await asyncio.wait_for(listeners.communicate(), 2 * _WITHIN_S)
    return msgspec.json.decode(said.splitlines()[-1], type=Heard)


async def _listeners(task: Task) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.listeners", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(task))
    process.stdin.close()
    return process


async def _measure(load: Load) -> tuple[Measured, Measured]:
    """Ours, and the baseline on the same Redis."""
    with programs.service() as served:
        url = redis_server.address(Settings(data_root=str(served.root)))
        async with Source(url, load.jobs) as source:
            await asyncio.to_thread(start_jobs, served, load.jobs)
            await source.all_started()
            ours = await _tell(served, load, source, source.bus.publish)
            port = free_port("127.0.0.1")
            environment = {"TRAINING_PORT": str(port), "REDIS_URL": url}
            with programs.program("benchmarks.channels", port=port, root=served.root, **environment) as baseline:
                transport = channels.backend(url)

                async def publish(messages: Sequence[bytes]) -> None:
                    for message in messages:
                        await transport.publish(message, [channels.CHANNEL])

                return ours, await _tell(baseline, load, source, publish, path=f"/{channels.CHANNEL}")


def start_jobs(served: Served, count: int) -> list[str]:
    """Trainings that the source will be given."""
    dataset = served.root / "datasets" / "made" / "train.jsonl"
    dataset.parent.mkdir(parents=True)
    dataset.write_text("{}\n")
    body = {"config": {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}}
    with httpx.Client(base_url=served.address, trust_env=False) as client:
        answers = [client.post("/api/train/start", json=body).raise_for_status().json() for _ in range(count)]
    return [answer["job_id"] for answer in answers]


async def _tell(
    served: Served, load: Load, source: Source, publish: Publish, *, path: str | None = None, note_every: int = 0
) -> Measured:
    """Open the sockets, let the source speak, and wait until every socket has heard all or the time is over."""
    count = load.rate * SAY_FOR_S
    listeners = await _listeners(
        Task(
            address=served.address,
            path=path or "/api/ws",
            sockets=load.sockets,
            events=count,
            within_s=_WITHIN_S,
            stalled=load.stalled,
            subscribes=path is None,
        )
    )
    assert listeners.stdout is not None
    try:
        await asyncio.wait_for(listeners.stdout.readuntil(b"ready\n"), _WITHIN_S)
        await asyncio.sleep(1)  # sockets are open a moment before they are subscribed
        began, before_s = time.monotonic(), served.cpu_s
        await source.log_metrics(publish, count, load.rate, note_every=note_every)
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


def _median(measured: Sequence[Measured]) -> Measured:
    return sorted(measured, key=lambda each: each.heard.p99_ms)[len(measured) // 2]


def _row(what: str, of: Measured, baseline: Measured | None = None) -> tuple[str, ...]:
    heard = of.heard
    ratio = f"{heard.p99_ms / baseline.heard.p99_ms:.2g}" if baseline else ""
    late = (f"{heard.p50_ms:,.0f}", f"{heard.p99_ms:,.0f}", ratio, f"{heard.worst_ms:,.0f}")
    complete = "all" if heard.complete == heard.sockets else f"**{heard.complete:,} of {heard.sockets:,}**"
    return what, *late, complete, f"{heard.messages:,}", f"{of.cpu:.0%}", f"{of.load_cpu:.0%}", f"{of.memory_mib:.0f}"


if __name__ == "__main__":
    print(run().as_markdown())
