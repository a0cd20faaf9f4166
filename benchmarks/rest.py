"""How fast the service answers, against a twin that keeps nothing: `twin.py`.

The service is the real one: access rules, validation, paths, SQLite with synchronous=FULL, a start answered after
the commit. No runner is there, so the jobs pile up as pending, which must not slow it down.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx
import msgspec

from benchmarks import programs, wrk
from benchmarks.programs import Served
from benchmarks.report import Report, at_least
from benchmarks.wrk import Load
from service.programs import free_port

CLAIM = "A durable start and a status are as fast as in a web service that keeps nothing."

ROUNDS = 5
ROUND_S = 3
_ASKED = 100  # jobs whose status is asked for in turn
_TRAINING = {
    "config": {
        "model_name": "demo-llava",
        "train_data_path": "datasets/frames/train.jsonl",
        "val_data_path": "datasets/frames/val.jsonl",
        "output_dir": "first-run",
        "use_qlora": True,
        "learning_rate": 2e-4,
        "num_epochs": 3,
    },
    "experiment_name": "first run",
    "tags": ["8gb"],
}


@dataclass(frozen=True)
class Borne:
    """A load, and what it cost the server."""

    load: Load
    cpu_s: float

    @property
    def cpu_us(self) -> float:
        return 1e6 * self.cpu_s / self.load.requests


@dataclass(frozen=True)
class Side:
    """One of the two servers, and the loads it bore."""

    served: Served
    starts: list[Borne] = field(default_factory=list)
    statuses: list[Borne] = field(default_factory=list)


def run() -> Report:
    with programs.service() as served, _twin(served.root) as baseline:
        _lay_out_data(served.root)
        ours, twin = Side(served), Side(baseline)
        for side in (ours, twin):
            _start(side, 1), _status(side, 1)  # warms it up
        for _ in range(ROUNDS):
            for side in (ours, twin):
                side.starts.append(_start(side, ROUND_S))
            for side in (ours, twin):
                side.statuses.append(_status(side, ROUND_S))
        pending, listing_ms = _pending(served), _listing_ms(served)
    start, status = _ratio(ours.starts, twin.starts), _ratio(ours.statuses, twin.statuses)
    kept_up = ours.starts[0].cpu_us / ours.starts[-1].cpu_us
    return Report(
        claim=CLAIM,
        setup=f"{wrk.CONNECTIONS} connections of wrk, {ROUNDS} rounds of {ROUND_S} s a route and server in turn, "
        "medians over the rounds, ratios within a round. Each server is one uvicorn process; wrk and both share the "
        "machine. No runner is connected, so every start adds a pending job: at the end there were "
        f"{pending:,}, and a page of 100 of them took {listing_ms:.0f} ms.",
        columns=("", "answers/s", "p50 ms", "p99 ms", "CPU µs an answer"),
        rows=[
            _row("start, durable", ours.starts),
            _row("start, twin", twin.starts),
            _row("status", ours.statuses),
            _row("status, twin", twin.statuses),
            _row(f"start, first {ROUND_S} s", ours.starts[:1]),
            _row(f"start, last {ROUND_S} s", ours.starts[-1:]),
        ],
        aims=[
            at_least("start against the twin", start, 0.6),
            at_least("status against the twin", status, 1.2),
            at_least(f"processor time of a start: empty queue against {pending:,} jobs pending", kept_up, 0.8),
        ],
    )


def _twin(root: Path) -> AbstractContextManager[Served]:
    port = free_port("127.0.0.1")
    return programs.program("benchmarks.twin", port=port, root=root, TRAINING_PORT=str(port))


def _lay_out_data(root: Path) -> None:
    folder = root / "datasets" / "frames"
    folder.mkdir(parents=True)
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).write_text("")


def _start(side: Side, for_s: int) -> Borne:
    before = side.served.cpu_s
    load = wrk.post(f"{side.served.address}/api/train/start", msgspec.json.encode(_TRAINING), for_s)
    return Borne(load, side.served.cpu_s - before)


def _status(side: Side, for_s: int) -> Borne:
    with httpx.Client(base_url=side.served.address, trust_env=False) as client:
        answers = [client.post("/api/train/start", json=_TRAINING).raise_for_status().json() for _ in range(_ASKED)]
    before = side.served.cpu_s
    load = wrk.get(side.served.address, [f"/api/train/{answer['job_id']}/status" for answer in answers], for_s)
    return Borne(load, side.served.cpu_s - before)


def _pending(served: Served) -> int:
    """How many jobs wait: the place in the queue of the newest."""
    with httpx.Client(base_url=served.address, trust_env=False, timeout=60) as client:
        newest = client.get("/api/jobs", params={"limit": 1}).raise_for_status().json()["jobs"][0]
    return int(newest["queue_position"])


def _listing_ms(served: Served) -> float:
    times = []
    with httpx.Client(base_url=served.address, trust_env=False, timeout=60) as client:
        for _ in range(5):
            began = perf_counter()
            client.get("/api/jobs", params={"limit": 100}).raise_for_status()
            times.append(1000 * (perf_counter() - began))
    return median(times)


def _ratio(ours: list[Borne], twin: list[Borne]) -> float:
    return median(a.load.rate / b.load.rate for a, b in zip(ours, twin, strict=True))


def _row(what: str, borne: list[Borne]) -> tuple[str, ...]:
    rate = median(one.load.rate for one in borne)
    p50, p99 = median(one.load.p50_us for one in borne), median(one.load.p99_us for one in borne)
    return what, f"{rate:,.0f}", f"{p50 / 1000:.1f}", f"{p99 / 1000:.1f}", f"{median(b.cpu_us for b in borne):,.0f}"
