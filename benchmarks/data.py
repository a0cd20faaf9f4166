"""What preparing data costs: convert, validate (every rule, every mask decoded, every picture opened) and split.

Each step is the recipe in a process of its own, as the runner starts it where it cannot fork, with all cores. Memory is
the proportional set size of that process and those it forks: what is shared counts once. Then the same through the
real service and runner, while `/health` is asked all the time.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from benchmarks import export, programs
from benchmarks.report import Report, at_least, at_most
from gpu_runner.child import Assignment
from jobs import commands
from jobs.client import Client
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ConvertSpec, JobSpec, SplitSpec, SplitStrategy, ValidateSpec, kind_of
from service.programs import Programs

CLAIM = "Ten thousand frames are converted, checked and divided in seconds, in memory that does not grow with them."

SIZES = (1_000, 10_000, 100_000)
SERVED = 10_000  # frames that go through the service
_LOOK_EVERY_S = 0.02
_MOST_ENTRIES = 1_000_000  # files of an archive: more than the product's default


class Cost(NamedTuple):
    seconds: float
    cpu_s: float
    peak_bytes: int


def run() -> Report:
    costs = {frames: _prepare(frames) for frames in SIZES}
    delays_ms = _served()
    middle, large = _total(costs[SIZES[1]]), _total(costs[SIZES[2]])
    return Report(
        claim=CLAIM,
        setup=f"Frames of {export.SIDE}x{export.SIDE} pixels as PNG of about 6 kB with three objects each; beyond "
        f"{export.MAX_PICTURES:,} frames the pictures repeat. Every step is a process with {_cores()} cores, its start "
        "and imports included; CPU is of all cores together, memory the peak of the process and those it forks. "
        f"The answers of /health were timed one after the other while {SERVED:,} frames went through service and "
        f"runner: {len(delays_ms):,} of them, half within {_percentile(delays_ms, 50):.1f} ms.",
        columns=("frames", "step", "s", "frames/s", "CPU s", "peak MiB"),
        rows=[row for frames, steps in costs.items() for row in _rows(frames, steps)],
        aims=[
            at_most(f"{SIZES[1]:,} frames", middle.seconds, 15, "s"),
            at_most(f"{SIZES[1]:,} frames, validate", costs[SIZES[1]]["validate"].seconds, 7, "s"),
            at_most(f"{SIZES[1]:,} frames, memory", middle.peak_bytes / 2**20, 300, "MiB"),
            at_most(f"{SIZES[2]:,} frames, memory", large.peak_bytes / 2**20, 300, "MiB"),
            at_least("frames/s of the largest against the middle", 10 * middle.seconds / large.seconds, 0.8),
            at_most("/health meanwhile, p99", _percentile(delays_ms, 99), 100, "ms"),
        ],
    )


def _prepare(frames: int) -> dict[str, Cost]:
    archive = export.path(frames)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=export.CACHE) as folder:
        root = DataRoot(folder)
        root.uploads.mkdir()
        root.datasets.mkdir()
        archive.rename(root.uploads / archive.name)  # a link would be refused, a copy takes as long as the work
        try:
            return {kind_of(spec).value: _cost(root, spec) for spec in _specs(f"uploads/{archive.name}")}
        finally:
            (root.uploads / archive.name).rename(archive)


def _specs(archive: str) -> list[JobSpec]:
    return [
        ConvertSpec(sam2_zip_path=archive, output_dir="datasets/frames"),
        ValidateSpec(data_path="datasets/frames", level="strict"),
        SplitSpec(data_path="datasets/frames", output_dir="datasets/parts", strategy=SplitStrategy.TEMPORAL),
    ]


def _cost(root: DataRoot, spec: JobSpec) -> Cost:
    """Run a recipe to its end."""
    folder = root.attempt(kind_of(spec), 1)
    folder.folder.mkdir(parents=True)
    start = commands.Start(job_id=kind_of(spec), attempt=1, spec=spec, device="cpu")
    folder.start.write_bytes(msgspec.json.encode(start))
    assignment = Assignment(
        attempt_folder=str(folder.folder),
        runner_id="benchmark",
        device_name="",
        cores=_cores(),
        recipes="gpu_runner.recipes",
    )
    settings = Settings(data_root=str(root.folder), archive_max_entries=_MOST_ENTRIES)
    doorbell, bell = os.pipe()
    threading.Thread(target=_drain, args=(doorbell,), daemon=True).start()
    before, began = os.times(), time.perf_counter()
    with folder.log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_runner.child", str(bell), msgspec.json.encode(assignment).decode()],
            env=os.environ | settings.to_environment(),
            pass_fds=[bell],
            stdout=output,
            stderr=output,
        )
    os.close(bell)
    peak = max(_watch(process), default=0)
    after = os.times()
    if process.returncode:
        raise RuntimeError(f"{kind_of(spec)} failed: {folder.log.read_text()[-2000:]}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - began, cpu_s, peak)


def _watch(process: "subprocess.Popen[bytes]") -> Iterator[int]:
    """The memory of a process and those it forks, again and again until it ends."""
    while process.poll() is None:
        yield sum(_proportional_bytes(pid) for pid in (process.pid, *_children(process.pid)))
        time.sleep(_LOOK_EVERY_S)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has just ended
        return []


def _proportional_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def _drain(doorbell: int) -> None:
    while os.read(doorbell, 1 << 16):
        pass
    os.close(doorbell)


def _served() -> list[float]:
    """How long each answer of `/health` took while an export went through service and runner."""
    with programs.scratch() as settings:
        logs = settings.data_folder / "logs"
        with Programs(settings, log_folder=logs) as running, Client(settings.address) as client:
            running.wait_until_ready()
            archive = client.upload(export.path(SERVED))["file_path"]
            with _asking(settings.address) as delays_ms:
                for spec in _specs(archive):
                    client.wait(client.submit(msgspec.to_builtins(spec)))
    return delays_ms


@contextmanager
def _asking(address: str) -> Iterator[list[float]]:
    """Ask for `/health` one time after the other; the milliseconds of each answer."""
    delays_ms: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, trust_env=False) as client:
            while not is_over.wait(0.01):
                began = time.perf_counter()
                client.get("/health").raise_for_status()
                delays_ms.append(1000 * (time.perf_counter() - began))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield delays_ms
    finally:
        is_over.set()
        thread.join()


def _rows(frames: int, steps: dict[str, Cost]) -> Iterator[tuple[str, ...]]:
    for name, cost in [*steps.items(), ("together", _total(steps))]:
        rate = f"{frames / cost.seconds:,.0f}"
        yield f"{frames:,}", name, f"{cost.seconds:.1f}", rate, f"{cost.cpu_s:.1f}", f"{cost.peak_bytes / 2**20:.0f}"


def _total(steps: dict[str, Cost]) -> Cost:
    costs = steps.values()
    return Cost(sum(c.seconds for c in costs), sum(c.cpu_s for c in costs), max(c.peak_bytes for c in costs))


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _cores() -> int:
    return len(os.sched_getaffinity(0))
