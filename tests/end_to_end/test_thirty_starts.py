"""Thirty trainings at once on two runners with 12 GiB each: never over-committed, in order, all complete."""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from jobs.calls import Json
from jobs.client import Client
from jobs.lifecycle import TERMINAL
from jobs.settings import Settings
from service.programs import Programs, free_port

GIB = 2**30
BUDGET_GIB = 12.0
WITHIN_S = 240


@dataclass(frozen=True)
class Farm:
    settings: Settings
    client: Client


@pytest.fixture(scope="module")
def farm(tmp_path_factory) -> Iterator[Farm]:
    """A service and two runners on one data root."""
    root = tmp_path_factory.mktemp("farm")
    settings = Settings(
        data_root=str(root),
        port=free_port("127.0.0.1"),
        runner_id="a",
        hf_offline=True,
        report_every_s=0.5,
        stop_grace_s=5,
        gpu_slots=4,
        memory_budget_gib=BUDGET_GIB,
    )
    second = msgspec.structs.replace(settings, runner_id="b")
    with Programs(settings, log_folder=root / "logs") as programs:
        programs.wait_until_ready()
        with (root / "b.log").open("wb") as log:
            command = [sys.executable, "-m", "gpu_runner.worker"]
            other = subprocess.Popen(command, env={**os.environ, **second.to_environment()}, stdout=log, stderr=log)
        try:
            with Client(settings.address) as client:
                yield Farm(settings, client)
        finally:
            other.terminate()
            other.wait(timeout=20)


@pytest.fixture(scope="module")
def data(farm, sample_zip) -> Json:
    uploaded = farm.client.upload(sample_zip)
    convert = {"sam2_zip_path": uploaded["file_path"], "output_dir": "farm/llava", "target_format": "llava"}
    converted = farm.client.post("/api/data/convert", convert)
    body = {"data_path": converted["output_dir"], "output_dir": "farm/split", "strategy": "random"}
    return farm.client.post("/api/data/split", body | {"train_ratio": 0.2, "val_ratio": 0.4, "test_ratio": 0.4})


def test_thirty_starts_at_once_share_the_budget_and_all_complete(farm, data) -> None:
    while len([runner for runner in farm.client.get("/api/runners") if runner["alive"]]) < 2:
        time.sleep(0.2)
    sizes = (4, 16, 64)  # rows a batch at most: what is promised differs, what is done hardly does
    job_ids = [_start(farm, data, batch_size=sizes[n % 3], priority=int(n == 29)) for n in range(30)]

    reasons: dict[str, set[str]] = defaultdict(set)
    devices_seen, most_together, deadline = set(), 0, time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        for runner in farm.client.get("/api/runners"):
            (device,) = runner["devices"]
            assert device["memory_total_bytes"] == BUDGET_GIB * GIB
            models = [job for job in device["jobs"] if job["reserved_bytes"] != 0]
            promised = sum(job["reserved_bytes"] for job in models)
            assert promised <= BUDGET_GIB * GIB, device
            assert device["memory_reserved_bytes"] <= BUDGET_GIB * GIB, device
            most_together = max(most_together, len(models))
            devices_seen |= {runner["runner_id"]} if models else set()
        queue = farm.client.get("/api/train/queue")["queue"]
        assert [job["position"] for job in queue] == list(range(1, len(queue) + 1))
        for job in queue:
            reasons[job["job_id"]].add(job["reason"] or "")
        jobs = [farm.client.job(job_id) for job_id in job_ids] if not queue else []
        if jobs and all(job["status"] in TERMINAL for job in jobs):
            break
        time.sleep(0.5)

    jobs = [farm.client.job(job_id) for job_id in job_ids]
    assert [job["status"] for job in jobs] == ["completed"] * 30, [job["failure_detail"] for job in jobs]
    assert devices_seen == {"a", "b"}
    assert most_together > 1
    said = {reason for found in reasons.values() for reason in found}
    assert any("GiB free on cpu of" in reason for reason in said), said
    large = [job_id for n, job_id in enumerate(job_ids) if n % 3 == 2]
    *placed, urgent = [_placed_seq(farm, job_id) for job_id in large]
    assert placed == sorted(placed)  # of one size nobody overtakes
    assert urgent < placed[-1]  # it came last and did not have to wait for all


def _placed_seq(farm, job_id: str) -> int:
    """Where the decision stands among all events."""
    found = farm.client.get(f"/api/jobs/{job_id}/events?types=job.placed")["events"]
    return int(found[0]["seq"])


def _start(farm, data, *, batch_size: int, priority: int) -> str:
    config = {
        "model_name": "demo-llava",
        "train_data_path": data["train_path"],
        "max_steps": 1,
        "batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "max_length": 2048,
        "save_steps": 10,
        "device": "cpu",
        "priority": priority,
    }
    return str(farm.client.submit({"kind": "finetune", "config": config}))
