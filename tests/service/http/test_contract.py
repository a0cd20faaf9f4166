"""The contract's routes answer with the contract's fields and statuses, under both prefixes."""

import httpx
import pytest

from jobs import events
from jobs.lifecycle import Status
from jobs.results import FinetuneResult
from jobs.specs import Kind
from service import answers

PREFIXES = ("/api", "/api/training")


def _config(dataset: str, **changes) -> dict:
    return {"model_name": "demo-llava", "train_data_path": dataset} | changes


def _start(http, dataset: str, **changes) -> httpx.Response:
    body = {"config": _config(dataset), "experiment_name": "one", "tags": ["a", "b"]} | changes
    return http.post("/api/train/start", json=body)


async def _train(attempt) -> None:
    """Two metric rows, a checkpoint, progress, the end."""
    await attempt.begin()
    rows = [(1, {"train_loss": 0.9, "learning_rate": 1e-4}), (2, {"eval_loss": 0.0, "eval_accuracy": 0.5})]
    for step, values in rows:
        await attempt.say(events.MetricsLogged, step=step, values=values, epoch=step / 2, total_steps=4, total_epochs=1)
    path = f"jobs/{attempt.job_id}/attempt-1/checkpoints/step-2"
    await attempt.say(events.CheckpointSaved, step=2, path=path, bytes=2**20, metrics={"eval_loss": 0.0})
    await attempt.progress(2, 4, epoch=0.5, eta_s=3.0)
    await attempt.complete(
        FinetuneResult(
            steps=4,
            final_train_loss=0.5,
            best_eval_loss=0.0,
            best_eval_accuracy=0.5,
            best_scores={"eval_box_iou": 0.25},
        )
    )


def test_the_root_says_that_it_is_healthy(http) -> None:
    body = http.get("/").json()
    assert body["status"] == "healthy"
    assert {"service", "version"} <= set(body)


def test_health_counts_the_runners(http) -> None:
    for path in ("/health", "/health/ready", "/api/health", "/api/training/health"):
        body = http.get(path).json()
        assert (body["status"], body["redis"], body["database"], body["runners"]) == ("healthy", True, True, 1)
    assert http.get("/health/live").json() == {"status": "healthy"}


def test_without_a_runner_the_service_is_degraded_and_still_accepts_work(build) -> None:
    answer = build(with_runner=False).http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


def test_a_training_is_recorded_followed_and_listed(house, http, dataset) -> None:
    house.runner.scripts[Kind.FINETUNE] = _train
    started = _start(http, dataset).json()
    assert started["success"] is True
    job_id = started["job_id"]
    house.wait_for(job_id, lambda job: job.has_ended)
    for prefix in PREFIXES:
        progress = http.get(f"{prefix}/train/{job_id}/status").json()
        assert (progress["status"], progress["progress_percentage"]) == ("completed", 100.0)
        assert progress["current_step"] == progress["total_steps"] == 4
        assert progress["started_at"].endswith("Z")
        assert progress["completed_at"].endswith("Z")
        assert (progress["train_loss"], progress["eval_loss"], progress["error_message"]) == (0.5, 0.0, None)
        listed = http.get(f"{prefix}/train/jobs").json()
        assert listed[0] == progress


def test_progress_never_goes_backwards_when_a_training_begins_again(house, http, dataset) -> None:
    percentages = []

    async def train(attempt) -> None:
        await attempt.begin()
        step = 3 if attempt.start.attempt == 1 else 1
        await attempt.say(events.MetricsLogged, step=step, values={"train_loss": 1.0}, total_steps=4)
        await attempt.progress(step, 4)
        if attempt.start.attempt == 1:
            await attempt.say(events.JobInterrupted, cause="its process was killed")
        else:
            await attempt.cancelled.wait()

    house.runner.scripts[Kind.FINETUNE] = train
    job_id = _start(http, dataset).json()["job_id"]

    def has_begun_again(job) -> bool:
        percentages.append(answers.percentage(job))
        return job.attempt == 2 and job.step == 1

    house.wait_for(job_id, has_begun_again)
    assert percentages == sorted(percentages)
    assert percentages[-1] == 75.0
    http.post(f"/api/train/{job_id}/cancel")
    house.wait_for(job_id, lambda job: job.has_ended)


def test_the_list_shows_the_newest_first_and_filters(house, http, dataset) -> None:
    ids = [_start(http, dataset).json()["job_id"] for _ in range(3)]
    for job_id in ids:
        house.wait_for(job_id, lambda job: job.has_ended)
    assert [job["job_id"] for job in http.get("/api/train/jobs?limit=3").json()] == ids[::-1]
    assert http.get("/api/train/jobs?status=running").json() == []
    assert len(http.get("/api/train/jobs?status=completed&limit=2").json()) == 2


@pytest.mark.parametrize(
    "query", ["status=nope", "limit=abc", "limit=0", "limit=-1", "limit=1000000000", "limit=1.5", "limit=9" + "9" * 30]
)
def test_a_bad_query_is_422_with_the_parameters_name(http, query) -> None:
    answer = http.get(f"/api/train/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_rank", 0), ("num_epochs", 0), ("num_epochs", 10**9), ("batch_size", 129), ("learning_rate", 0),
        ("learning_rate", 1e308), ("lora_dropout", 0.9), ("max_length", 64), ("save_total_limit", 11),
        ("warmup_ratio", 0.6), ("seed", 2**64), ("push_to_hub", True), ("__class__", "x"), ("device", "tpu"),
    ],
)  # fmt: skip
def test_a_setting_beyond_its_limits_is_422_with_its_path(http, dataset, field, value) -> None:
    answer = _start(http, dataset, config=_config(dataset, **{field: value}))
    assert answer.status_code == 422
    assert [each["path"] for each in answer.json()["errors"]] == [f"config.{field}"]


def test_all_errors_of_a_body_come_at_once(http, dataset) -> None:
    answer = _start(http, dataset, config=_config(dataset, lora_rank=0, batch_size=0, nonsense=1), more=2)
    found = {each["path"] for each in answer.json()["errors"]}
    assert found == {"config.lora_rank", "config.batch_size", "config.nonsense", "more"}
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "code", "message"} <= set(answer.json())


def test_missing_data_is_404_and_data_outside_422(http, dataset) -> None:
    assert _start(http, dataset, config=_config("datasets/none.jsonl")).status_code == 404
    assert _start(http, dataset, config=_config(dataset, val_data_path="/nonexistent")).status_code == 422
    assert http.post("/api/train/start", json={"experiment_name": "x"}).status_code == 422


def test_a_cancel_is_accepted_once_and_false_after_the_end(house, http, dataset, scripts) -> None:
    house.runner.scripts[Kind.FINETUNE] = scripts.run_until_stopped
    job_id = _start(http, dataset).json()["job_id"]
    house.wait_for(job_id, lambda job: job.status is Status.RUNNING)
    refused = http.delete(f"/api/experiments/{job_id}")
    assert (refused.status_code, refused.json()["code"]) == (400, "wrong_state")
    assert http.post(f"/api/train/{job_id}/cancel").json()["success"] is True
    house.wait_for(job_id, lambda job: job.has_ended)
    again = http.post(f"/api/train/{job_id}/cancel")
    assert (again.status_code, again.json()["success"], again.json()["status"]) == (200, False, "cancelled")
    assert http.get(f"/api/train/{job_id}/status").json()["status"] == "cancelled"


def test_an_experiment_shows_its_settings_metrics_and_checkpoints(house, http, dataset) -> None:
    house.runner.scripts[Kind.FINETUNE] = _train
    job_id = _start(http, dataset).json()["job_id"]
    house.wait_for(job_id, lambda job: job.has_ended)
    detail = http.get(f"/api/experiments/{job_id}").json()
    assert (detail["experiment_id"], detail["experiment_name"], detail["tags"]) == (job_id, "one", ["a", "b"])
    assert detail["config"]["train_data_path"] == dataset
    assert detail["best_checkpoint_path"].endswith("step-2")
    assert detail["checkpoints"][0]["metrics"] == {"eval_loss": 0.0}
    assert detail["gpu_type"] == "Fake CPU"
    metrics = http.get(f"/api/experiments/{job_id}/metrics").json()["metrics"]
    assert metrics["steps"] == [1, 2]
    assert metrics["train_loss"] == [0.9, None]
    assert metrics["eval_loss"] == [None, 0.0]
    assert metrics["eval_accuracy"] == [None, 0.5]
    assert detail["metrics_history"] == metrics


def test_a_value_that_is_no_finite_number_is_told_by_its_step(house, http, dataset) -> None:
    async def diverge(attempt) -> None:
        await attempt.begin()
        await attempt.say(events.MetricsLogged, step=1, values={"train_loss": 0.9, "learning_rate": 1e-4})
        await attempt.say(events.MetricsLogged, step=2, values={"train_loss": None, "learning_rate": 1e-4})
        await attempt.say(events.MetricsLogged, step=3, values={"eval_loss": None})
        await attempt.complete()

    house.runner.scripts[Kind.FINETUNE] = diverge
    job_id = _start(http, dataset).json()["job_id"]
    house.wait_for(job_id, lambda job: job.has_ended)
    answer = http.get(f"/api/experiments/{job_id}/metrics").json()
    assert answer["metrics"]["train_loss"] == [0.9, None, None]
    assert answer["not_finite"] == {"train_loss": [2], "eval_loss": [3]}


def test_experiments_are_filtered_and_sorted(house, http, dataset) -> None:
    house.runner.scripts[Kind.FINETUNE] = _train
    job_id = _start(http, dataset, tags=["only-me"]).json()["job_id"]
    house.wait_for(job_id, lambda job: job.has_ended)
    for path in ("/api/experiments?tag=only-me", "/api/experiments/?tag=only-me"):
        assert [each["experiment_id"] for each in http.get(path).json()] == [job_id]
    losses = [each["best_eval_loss"] for each in http.get("/api/experiments?sort_by=best_eval_loss").json()]
    known = [loss for loss in losses if loss is not None]
    assert known[0] == 0.0
    assert losses == sorted(known) + [None] * (len(losses) - len(known))
    assert http.get("/api/experiments?sort_by=status;drop").status_code == 422


def test_a_comparison_takes_zero_for_a_value(house, http, dataset, trained) -> None:
    house.runner.scripts[Kind.FINETUNE] = _train
    best = _start(http, dataset).json()["job_id"]
    house.wait_for(best, lambda job: job.has_ended)
    asked = {"experiment_ids": [trained, best], "metrics": ["eval_loss", "duration", "eval_box_iou"]}
    answer = http.post("/api/experiments/compare", json=asked).json()
    assert answer["comparison_table"]["eval_loss"] == {trained: 0.4, best: 0.0}
    assert answer["comparison_table"]["duration"][best] >= 0
    assert answer["comparison_table"]["eval_box_iou"] == {trained: None, best: 0.25}
    assert answer["best_experiment_id"] == best
    assert [each["experiment_id"] for each in answer["experiments"]] == [trained, best]


@pytest.mark.parametrize(
    ("ids", "metrics", "status"),
    [(1, None, 422), (11, None, 422), (2, ["nope"], 422), (2, None, 422), (0, None, 422)],
)
def test_a_comparison_of_too_few_too_many_twice_or_by_nothing_known_is_422(http, trained, ids, metrics, status) -> None:
    body = {"experiment_ids": [trained] * ids} | ({"metrics": metrics} if metrics else {})
    assert http.post("/api/experiments/compare", json=body).status_code == status


def test_unknown_things_are_404(http, trained) -> None:
    for method, path in [
        ("GET", "/train/nope/status"), ("POST", "/train/nope/cancel"), ("GET", "/experiments/nope"),
        ("GET", "/experiments/nope/metrics"), ("DELETE", "/experiments/nope"), ("GET", "/export/nope/download"),
        ("GET", "/export/download_file/nope"), ("DELETE", "/export/nope"), ("GET", "/jobs/nope"),
        ("GET", "/jobs/nope/log"), ("GET", "/jobs/nope/events"), ("POST", "/jobs/nope/pause"), ("GET", "/nothing/here"),
        ("GET", "/train/1'--/status"), ("GET", "/train/%25/status"), ("GET", "/train/%D9%A1/status"),
        ("GET", f"/train/{'9' * 5000}/status"), ("GET", f"/export/{trained}/download"), ("GET", "/events?job=nope"),
        ("GET", "/export/download_file/..%2f..%2ftraining.db"), ("GET", "/export/download_file/%00"),
    ]:  # fmt: skip
        for prefix in PREFIXES:
            answer = http.request(method, prefix + path)
            assert answer.status_code == 404, (method, path)
            assert answer.json()["message"]
    unknown = {"experiment_ids": [trained, "nope"]}
    assert http.post("/api/experiments/compare", json=unknown).status_code == 404


def test_a_wrong_method_is_405_and_says_which_are_right(http) -> None:
    for method, path, allowed in [("PUT", "/train/jobs", "GET"), ("GET", "/data/convert", "POST")]:
        answer = http.request(method, f"/api{path}")
        assert answer.status_code == 405
        assert allowed in answer.headers["allow"]
        assert answer.json()["code"] == "method_not_allowed"


def test_an_experiment_can_be_deleted_once(http, trained) -> None:
    answer = http.delete(f"/api/experiments/{trained}")
    assert (answer.status_code, answer.json()["success"]) == (200, True)
    assert http.delete(f"/api/experiments/{trained}").status_code == 404
    assert http.get(f"/api/train/{trained}/status").status_code == 404
