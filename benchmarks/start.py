"""From submit to the first optimiser step, against a script that starts from nothing: `fresh.py`.

A step is seen in the job's own journal: the time its `metrics.logged` carries, on the clock that timed the submit.
"""

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from benchmarks import programs
from benchmarks.report import Report, at_least, at_most
from jobs.client import Client, Json
from jobs.errors import Unreachable
from jobs.settings import Settings
from service.programs import Programs

CLAIM = "A training of a small model does its first step within a second of its submit."

WARM, COLD = 7, 3
_WITHIN_S = 120
_CONFIG = {
    "model_name": "demo-llava",
    "max_steps": 2,
    "logging_steps": 1,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 256,
    "device": "cpu",
    "fp16": False,
    "bf16": False,
}


def run() -> Report:
    with programs.scratch() as settings:
        warm, fresh = _warm(settings)
        cold = [_cold(settings) for _ in range(COLD)]
    ratio = median(baseline / ours for ours, baseline in zip(warm, fresh, strict=True))
    return Report(
        claim=CLAIM,
        setup=f"demo-llava with LoRA on the CPU, batch 1. Warm: {WARM} trainings one after the other on a runner that "
        "is up, each followed by a fresh Python process that imports torch, transformers and peft, loads the model "
        f"and does one step; the ratio is the median over the pairs. Cold: {COLD} times from the start of the programs "
        "of `training-api up` to the first step of a training that was submitted as soon as the service answered.",
        columns=("", "median s", "longest s"),
        rows=[
            _row("submit → first step, warm runner", warm),
            _row("process → first step, fresh Python", fresh),
            _row("up → first step, cold", cold),
        ],
        aims=[
            at_most("submit → first step, warm", median(warm), 1.0, "s"),
            at_least("fresh Python against a warm runner", ratio, 4),
        ],
    )


def _warm(settings: Settings) -> tuple[list[float], list[float]]:
    warm, fresh = [], []
    with Programs(settings, log_folder=settings.data_folder / "logs") as running, Client(settings.address) as client:
        running.wait_until_ready()
        _prepare(client, settings.data_folder)
        _first_step_at(client, _submit(client))  # builds demo-llava
        _fresh_s(settings.data_folder)  # its files are in memory from here on, as the runner's are
        for _ in range(WARM):
            began = time.time()
            warm.append(_first_step_at(client, _submit(client)) - began)
            fresh.append(_fresh_s(settings.data_folder))
    return warm, fresh


def _cold(settings: Settings) -> float:
    began = time.time()
    with Programs(settings, log_folder=settings.data_folder / "logs"), Client(settings.address) as client:
        return _first_step_at(client, _submit(client)) - began


def _prepare(client: Client, root: Path) -> None:
    archive = root / "sample.zip"
    sample = [sys.executable, "-m", "gpu_runner.sam2.sample", str(archive), "--videos", "4", "--frames", "12"]
    subprocess.run(sample, check=True, stdout=subprocess.DEVNULL)
    uploaded = client.upload(archive)
    convert = {"sam2_zip_path": uploaded["file_path"], "output_dir": "datasets/sample", "target_format": "llava"}
    client.post("/api/data/convert", convert)


def _submit(client: Client) -> str:
    """Submit a training, again until somebody is there to take it; its id."""
    spec: Json = {"kind": "finetune", "config": _CONFIG | {"train_data_path": "datasets/sample/llava_dataset.jsonl"}}
    deadline = time.monotonic() + _WITHIN_S
    while True:
        try:
            return client.submit(spec)
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _first_step_at(client: Client, job_id: str) -> float:
    """When the first step was done; returns once the job has ended, so that the next one finds its place free."""
    client.wait(job_id)
    logged = client.get(f"/api/jobs/{job_id}/events?types=metrics.logged")["events"][0]["event"]
    return datetime.fromisoformat(logged["at"]).timestamp()


def _fresh_s(root: Path) -> float:
    rows = root / "datasets" / "sample" / "llava_dataset.jsonl"
    began = time.time()
    command = [sys.executable, "-m", "benchmarks.fresh", str(root / "models" / "demo-llava"), str(rows)]
    subprocess.run(command, check=True, capture_output=True)
    return time.time() - began


def _row(what: str, times: list[float]) -> tuple[str, str, str]:
    return what, f"{median(times):.2f}", f"{max(times):.2f}"
