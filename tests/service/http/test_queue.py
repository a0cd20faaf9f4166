"""Who waits and why, what is on which device, and pausing a training to give its device back."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from jobs import events, redis_server
from jobs.events import Device
from jobs.footprint import reserve_bytes
from jobs.lifecycle import Status
from jobs.model_shapes import known_shape
from jobs.specs import Kind, Slot
from jobs.training_config import TrainingConfig

PREFIXES = ("/api", "/api/training")


@pytest.fixture
def config(dataset) -> dict:
    return {"model_name": "demo-llava", "train_data_path": dataset}


@pytest.fixture
def start(http, config) -> Callable[..., str]:
    return lambda **settings: _start(http, config | settings)


def _start(http, config: dict) -> str:
    answer = http.post("/api/train/start", json={"config": config})
    assert answer.status_code == 200, answer.text
    return answer.json()["job_id"]


def _is(status: Status) -> Callable[[Any], bool]:
    return lambda job: job.status is status


async def _until_paused(attempt) -> None:
    await attempt.begin()
    if attempt.start.attempt == 1:
        await attempt.paused.wait()
        await attempt.say(events.JobPaused, step=1)
    else:
        await attempt.complete()


# -- the queue and the devices


@pytest.fixture
def one_at_a_time(build, scripts) -> Any:
    """A service whose only device has the memory for one training of the demo model. Trainings run until let go."""
    shape = known_shape("demo-llava")
    assert shape
    needed = reserve_bytes(TrainingConfig(model_name="demo-llava", train_data_path="d"), shape, device="cpu")
    total = round(1.5 * needed)
    device = Device(
        device_id="cpu", name="Small", slots={Slot.CPU: 2, Slot.GPU: 4}, memory_total_bytes=total,
        memory_free_bytes=total,
    )  # fmt: skip
    house = build(with_runner=False)
    house.runner = house.run(scripts.FakeRunner(redis_server.ensure(house.settings), devices=(device,)).__aenter__())
    folder = house.root.datasets / "made"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"id": "0"}\n')
    house.go_on = asyncio.Event()

    async def train(attempt) -> None:
        await attempt.begin()
        await attempt.progress(1, 10, eta_s=600.0)
        waits = [asyncio.ensure_future(event.wait()) for event in (house.go_on, attempt.paused)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if not house.go_on.is_set():
            await house.saved.wait()
            await attempt.say(events.JobPaused, step=1)
        else:
            await attempt.complete()

    house.saved = asyncio.Event()
    house.runner.scripts[Kind.FINETUNE] = train
    house.needed = needed
    house.total = total
    house.config = {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}
    return house


def _let(house, event: asyncio.Event) -> None:
    async def set_it() -> None:
        event.set()

    house.run(set_it())


def test_the_queue_says_who_waits_for_what_and_until_when(one_at_a_time) -> None:
    house, http = one_at_a_time, one_at_a_time.http
    assert http.get("/api/train/queue").json() == {"queue": [], "total": 0}
    first = _start(http, house.config)
    house.wait_for(first, lambda job: job.eta_s is not None)
    second = _start(http, house.config)
    third = _start(http, house.config | {"priority": 3})
    for job_id in (second, third):
        house.wait_for(job_id, lambda job: job.waiting_reason is not None)

    answer = http.get("/api/train/queue").json()
    assert [(job["job_id"], job["position"], job["priority"]) for job in answer["queue"]] == [
        (third, 1, 3),
        (second, 2, 0),
    ]
    assert answer["total"] == 2
    waiting = answer["queue"][0]
    assert (waiting["kind"], waiting["needs_cpu_bytes"]) == ("finetune", house.needed)
    assert f"needs {house.needed / 2**30:.1f} GiB" in waiting["reason"]
    assert "GiB free on cpu of fake" in waiting["reason"]
    begins_in = datetime.fromisoformat(waiting["predicted_start_at"]) - datetime.fromisoformat(waiting["submitted_at"])
    assert timedelta(seconds=500) < begins_in < timedelta(seconds=610)
    assert answer["queue"][1]["predicted_start_at"] is None  # nobody knows how long the one before it will take

    _let(house, house.go_on)
    for job_id in (first, second, third):
        house.wait_for(job_id, _is(Status.COMPLETED))
    assert http.get("/api/train/queue").json()["total"] == 0


def test_runners_say_what_is_kept_and_what_another_job_could_get(one_at_a_time) -> None:
    house, http = one_at_a_time, one_at_a_time.http
    job_id = _start(http, house.config)
    house.wait_for(job_id, _is(Status.RUNNING))
    ((device,),) = [runner["devices"] for runner in http.get("/api/runners").json()]
    assert [(job["job_id"], job["reserved_bytes"]) for job in device["jobs"]] == [(job_id, house.needed)]
    assert (device["memory_total_bytes"], device["memory_reserved_bytes"]) == (house.total, house.needed)
    assert device["memory_placeable_bytes"] == house.total - house.needed
    _let(house, house.go_on)
    house.wait_for(job_id, lambda job: job.has_ended)
    while house.app.state.recorder.runners["fake"].report.held:  # its memory is free when a report shows it
        house.run(house.app.state.recorder.next_report())
    ((device,),) = [runner["devices"] for runner in http.get("/api/runners").json()]
    assert (device["jobs"], device["memory_placeable_bytes"]) == ([], house.total)


def test_a_runner_that_cannot_measure_memory_says_so(http) -> None:
    ((device,),) = [runner["devices"] for runner in http.get("/api/runners").json()]
    names = ("memory_total_bytes", "memory_free_bytes", "memory_reserved_bytes", "memory_placeable_bytes")
    assert [device[name] for name in names] == [None] * 4


def test_what_makes_room_for_another_job_cannot_be_paused_and_goes_on_by_itself(one_at_a_time) -> None:
    house, http = one_at_a_time, one_at_a_time.http
    small = _start(http, house.config | {"preemptible": True})
    house.wait_for(small, _is(Status.RUNNING))
    urgent = _start(http, house.config | {"priority": 50})
    house.wait_for(small, lambda job: job.preempted_by == urgent)
    answer = http.post(f"/api/train/{small}/pause")
    assert answer.status_code == 400
    assert f"making room for {urgent} and goes on by itself" in answer.json()["detail"]
    _let(house, house.saved)
    house.wait_for(urgent, _is(Status.RUNNING))
    _let(house, house.go_on)
    for job_id in (urgent, small):
        house.wait_for(job_id, _is(Status.COMPLETED))
    assert http.get(f"/api/jobs/{small}").json()["attempt"] == 2


# -- pausing and resuming


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_training_is_paused_and_goes_on(house, http, start, prefix) -> None:
    house.runner.scripts[Kind.FINETUNE] = _until_paused
    job_id = start()
    house.wait_for(job_id, _is(Status.RUNNING))
    answer = http.post(f"{prefix}/train/{job_id}/pause")
    assert (answer.status_code, answer.json()["job_id"]) == (200, job_id)
    house.wait_for(job_id, _is(Status.PAUSED))
    assert http.post(f"{prefix}/train/{job_id}/pause").json()["status"] == "paused"  # asked twice is asked once
    answer = http.post(f"{prefix}/train/{job_id}/resume")
    assert (answer.status_code, answer.json()["attempt"]) == (200, 2)
    house.wait_for(job_id, _is(Status.COMPLETED))


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_has_ended_can_be_neither_paused_nor_resumed(http, trained, verb) -> None:
    answer = http.post(f"/api/train/{trained}/{verb}")
    assert answer.status_code == 400
    assert "The job is completed; only a" in answer.json()["detail"]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_job_that_is_not_there_is_not_found(http, verb) -> None:
    assert http.post(f"/api/train/job_no/{verb}").status_code == 404


def test_only_a_paused_training_is_resumed(house, http, start) -> None:
    house.runner.scripts[Kind.FINETUNE] = _until_paused
    job_id = start()
    house.wait_for(job_id, _is(Status.RUNNING))
    answer = http.post(f"/api/train/{job_id}/resume")
    assert (answer.status_code, answer.json()["detail"]) == (
        400, "The job is running; only a paused one can be resumed.",
    )  # fmt: skip
    http.post(f"/api/train/{job_id}/cancel")
    house.wait_for(job_id, lambda job: job.has_ended)


def test_a_training_that_waits_is_not_paused(http, start) -> None:
    job_id = start(device="cuda")
    answer = http.post(f"/api/train/{job_id}/pause")
    assert answer.status_code == 400
    assert "only a running one can be paused" in answer.json()["detail"]
    http.post(f"/api/train/{job_id}/cancel")


def test_a_training_that_is_being_cancelled_is_not_paused(house, http, start) -> None:
    ended = asyncio.Event()

    async def slow_to_end(attempt) -> None:
        await attempt.begin()
        await ended.wait()
        await attempt.say(events.JobCancelled)

    house.runner.scripts[Kind.FINETUNE] = slow_to_end
    job_id = start()
    house.wait_for(job_id, _is(Status.RUNNING))
    http.post(f"/api/train/{job_id}/cancel")
    answer = http.post(f"/api/train/{job_id}/pause")
    assert (answer.status_code, answer.json()["detail"]) == (400, "The job is being cancelled.")
    _let(house, ended)
    house.wait_for(job_id, lambda job: job.has_ended)


def test_work_without_a_state_to_save_is_not_paused(house, http, dataset) -> None:
    job_id = http.post("/api/jobs", json={"kind": "validate", "data_path": dataset}).json()["job_id"]
    answer = http.post(f"/api/train/{job_id}/pause")
    assert answer.status_code == 400
    assert "A validate job cannot be paused, only a training." in answer.json()["detail"]
    house.wait_for(job_id, lambda job: job.has_ended)
