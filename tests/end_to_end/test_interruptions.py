"""Processes die, Redis forgets: jobs complete all the same, and nobody can tell from their numbers."""

import time

import pytest
import redis

from jobs.calls import Json

SERIES = ("train_loss", "eval_loss", "eval_accuracy", "learning_rate", "grad_norm", "steps")


def series(house, job_id: str) -> Json:
    """What must not depend on interruptions: speed and memory may."""
    metrics = house.client.get(f"/api/experiments/{job_id}/metrics")["metrics"]
    return {name: metrics[name] for name in SERIES}


def attempts(house, job_id: str) -> int:
    return int(house.client.get(f"/api/jobs/{job_id}")["attempt"])


@pytest.fixture(scope="module")
def long_config(config) -> Json:
    return config | {"max_steps": 24, "save_steps": 4, "eval_steps": 12}


@pytest.fixture(scope="module")
def undisturbed(house, long_config) -> Json:
    job = house.run({"kind": "finetune", "config": long_config})
    assert job["status"] == "completed", job.get("failure_detail")
    return series(house, job["job_id"])


def test_a_killed_child_and_a_killed_runner_leave_no_mark_on_the_series(house, long_config, undisturbed) -> None:
    job_id = house.client.submit({"kind": "finetune", "config": long_config})
    house.until(job_id, 7)
    house.kill(house.child_of(job_id))
    house.until(job_id, 14)
    house.kill(runner_of(house))
    job = house.end_of(job_id)
    assert job["status"] == "completed", job.get("failure_detail")
    assert attempts(house, job_id) == 3
    assert series(house, job_id) == undisturbed


def test_a_training_survives_a_flushed_redis(house, long_config, undisturbed) -> None:
    job_id = house.client.submit({"kind": "finetune", "config": long_config})
    house.until(job_id, 7)
    redis.Redis(unix_socket_path=str(house.root / "redis" / "redis.sock")).flushall()
    job = house.end_of(job_id)
    assert job["status"] == "completed", job.get("failure_detail")
    assert attempts(house, job_id) == 1
    assert series(house, job_id) == undisturbed


def test_a_training_survives_a_killed_redis(house, long_config, undisturbed) -> None:
    job_id = house.client.submit({"kind": "finetune", "config": long_config})
    house.until(job_id, 7)
    house.kill(int((house.root / "redis" / "pid").read_text()))
    job = house.end_of(job_id)
    assert job["status"] == "completed", job.get("failure_detail")
    assert series(house, job_id) == undisturbed


def test_a_training_goes_on_while_the_service_is_killed_and_started_again(house, long_config, undisturbed) -> None:
    job_id = house.client.submit({"kind": "finetune", "config": long_config})
    house.until(job_id, 7)
    service = next(pid for pid, command in house.processes().items() if "service.serve" in command)
    house.kill(service)
    house.programs.revive()
    house.programs.wait_until_ready()
    job = house.end_of(job_id)
    assert job["status"] == "completed", job.get("failure_detail")
    assert attempts(house, job_id) == 1
    assert series(house, job_id) == undisturbed


@pytest.mark.parametrize("moment", ["at once", "training"])
def test_a_cancelled_training_leaves_no_process_and_stays_cancelled(house, long_config, moment) -> None:
    job_id = house.client.submit({"kind": "finetune", "config": long_config | {"max_steps": 2000, "num_epochs": 100}})
    if moment == "training":
        house.until(job_id, 4)
    child = house.child_of(job_id) if moment == "training" else None
    answer = house.client.post(f"/api/train/{job_id}/cancel", {})
    assert answer["success"]
    assert house.end_of(job_id)["status"] == "cancelled"
    assert child not in house.processes()
    time.sleep(1.5)  # three reports: nothing may bring it back
    assert house.client.get(f"/api/jobs/{job_id}")["status"] == "cancelled"
    again = house.client.post(f"/api/train/{job_id}/cancel", {})
    assert not again["success"]


def test_a_paused_training_resumes_where_it_was(house, long_config, undisturbed) -> None:
    job_id = house.client.submit({"kind": "finetune", "config": long_config})
    house.until(job_id, 7)
    house.client.post(f"/api/jobs/{job_id}/pause", {})
    for job in house.watch(job_id):
        if job["status"] == "paused":
            break
    assert job["status"] == "paused"
    house.client.post(f"/api/jobs/{job_id}/resume", {})
    assert house.end_of(job_id)["status"] == "completed"
    assert series(house, job_id) == undisturbed


def runner_of(house) -> int:
    """The runner's own process, not its zygote."""
    return next(pid for pid, command in house.processes().items() if "gpu_runner.worker" in command)
