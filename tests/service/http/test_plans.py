"""Asking what a training would take."""

import json

import msgspec
import pytest

from jobs import events
from jobs.errors import FailureReason
from jobs.specs import Kind

PREFIXES = ("/api", "/api/training")


@pytest.fixture
def body(dataset) -> dict:
    return {"config": {"model_name": "demo-llava", "train_data_path": dataset}, "experiment_name": "e", "tags": ["t"]}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_body_of_a_start_is_planned_and_nothing_is_started(http, body, prefix) -> None:
    before = len(http.get("/api/train/jobs").json())
    answer = http.post(f"{prefix}/train/plan", json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert plan["total_parameters"] == sum(plan["parameters"].values())
    assert 0 < sum(plan["trainable_parameters"].values()) < plan["total_parameters"]
    assert plan["tokens"]["p50"] <= plan["tokens"]["p95"] <= plan["tokens"]["max"]
    memory = plan["memory"]
    assert memory["low_bytes"] <= memory["expected_bytes"] <= memory["high_bytes"]
    assert sum(term["size_bytes"] for term in memory["terms"]) == memory["expected_bytes"]
    assert memory["dominant"] == memory["terms"][0]["name"]
    assert [device["runner_id"] for device in plan["devices"]] == ["fake"]
    assert plan["duration"]["minutes"] is None or plan["duration"]["minutes"] >= 0
    assert len(http.get("/api/train/jobs").json()) == before


def test_a_plan_can_be_read_again(http, body) -> None:
    plan = http.post("/api/train/plan", json=body).json()
    assert http.get(f"/api/train/plan/{plan['job_id']}").json() == plan
    assert http.get("/api/train/plan/job_no").status_code == 404


def test_what_is_no_plan_cannot_be_read_as_one(http, trained) -> None:
    answer = http.get(f"/api/train/plan/{trained}")
    assert answer.status_code == 400
    assert "no plan" in answer.json()["detail"]


def test_the_request_for_8_gb_is_answered_for_a_model_that_is_not_here(http, body) -> None:
    of = {"model_name": "llava-hf/llava-1.5-7b-hf", "use_qlora": True, "batch_size": 1, "max_length": 1024}
    plan = http.post("/api/train/plan", json={"config": body["config"] | of}).json()
    assert 5.4 <= plan["memory"]["expected_bytes"] / 2**30 <= 7.0  # simulated
    assert plan["memory"]["dominant"] == "weights in 4 bits"


def test_a_plan_that_fails_is_a_problem_with_its_sentence(house, http, body) -> None:
    async def fails(attempt) -> None:
        await attempt.begin()
        await attempt.say(events.JobFailed, reason=FailureReason.MODEL_UNAVAILABLE, detail="It cannot be had.")

    house.runner.scripts[Kind.PLAN] = fails
    answer = http.post("/api/train/plan", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (424, "It cannot be had.")


def test_a_plan_goes_on_without_its_caller(house, http, body) -> None:
    answer = http.post("/api/train/plan", json=body, headers={"prefer": "respond-async"})
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    house.wait_for(job_id, lambda job: job.has_ended)
    assert http.get(f"/api/train/plan/{job_id}").status_code == 200


def test_a_start_says_how_long_it_takes_once_it_was_planned_and_something_like_it_ran(
    house, http, body, scripts
) -> None:
    async def timed(attempt) -> None:
        await attempt.begin()
        made = scripts.default_result(attempt.job_id, attempt.spec)
        await attempt.complete(msgspec.structs.replace(made, tokens_per_second=500.0))

    body["config"]["learning_rate"] = 3e-4
    house.runner.scripts[Kind.FINETUNE] = timed
    first = http.post("/api/train/start", json=body).json()
    house.wait_for(first["job_id"], lambda job: job.has_ended)
    planned = http.post("/api/train/plan", json=body).json()
    assert planned["duration"]["basis"] == "history"
    started = http.post("/api/train/start", json=body).json()
    assert started["estimated_duration_minutes"] == planned["estimated_duration_minutes"] > 0


@pytest.mark.parametrize("route", ["plan", "start"])
def test_a_family_that_is_not_known_is_refused_with_a_sentence(house, http, body, route) -> None:
    folder = house.root.models / "strange"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    body["config"]["model_name"] = "strange"
    answer = http.post(f"/api/train/{route}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "config.model_name"
    assert "'bloom' are not known to train correctly here" in answer.json()["detail"]


@pytest.mark.parametrize("route", ["plan", "start"])
def test_a_method_that_does_not_go_on_from_anothers_is_refused(http, body, trained, route) -> None:
    body["config"] |= {"continue_from": trained, "use_lora": False}
    answer = http.post(f"/api/train/{route}", json=body)
    assert answer.status_code == 422
    assert "used the method lora and this one uses full" in answer.json()["detail"]


@pytest.mark.parametrize("route", ["plan", "start"])
def test_a_base_in_8_bits_is_refused_on_a_cpu(http, body, route) -> None:
    body["config"] |= {"use_qlora": True, "qlora_bits": 8, "device": "cpu"}
    answer = http.post(f"/api/train/{route}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "config.qlora_bits"
    assert "set qlora_bits to 4" in answer.json()["detail"]


def test_a_wrong_body_names_its_fields(http, body) -> None:
    body["config"]["batch_size"] = 0
    answer = http.post("/api/train/plan", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "config.batch_size"
