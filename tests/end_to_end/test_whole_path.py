"""A SAM2 export becomes a fine-tuned, exported model, over the contract's own routes."""

import io
import json
import zipfile
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from jobs.calls import Json


@pytest.fixture(scope="module")
def trained(house, config) -> Json:
    started = house.client.post("/api/train/start", {"config": config, "experiment_name": "walk", "tags": ["walk"]})
    assert started["success"]
    return house.end_of(started["job_id"])


@pytest.mark.parametrize("data_format", ["llava", "huggingface"])
def test_both_formats_convert_validate_and_split(house, sample_zip, data_format) -> None:
    uploaded = house.client.upload(sample_zip)
    body = {"sam2_zip_path": uploaded["file_path"], "output_dir": f"walk/{data_format}", "target_format": data_format}
    converted = house.client.post("/api/data/convert", body)
    validated = house.client.post(
        "/api/data/validate", {"data_path": converted["output_dir"], "format_type": data_format}
    )
    assert validated["passed"], validated["errors"]
    for strategy in ("stratified", "temporal", "random"):
        body = {"data_path": converted["output_dir"], "output_dir": f"walk/{data_format}-{strategy}"}
        split = house.client.post("/api/data/split", body | {"strategy": strategy})
        counts = [split[f"{part}_samples"] for part in ("train", "val", "test", "guard")]
        assert sum(counts) == converted["num_samples"]


def test_a_training_completes_with_a_dense_series(house, trained) -> None:
    assert trained["status"] == "completed", trained
    metrics = house.client.get(f"/api/experiments/{trained['job_id']}/metrics")["metrics"]
    logged = [step for step, loss in zip(metrics["steps"], metrics["train_loss"], strict=True) if loss is not None]
    assert logged == [2, 4, 6, 8, 10, 12]
    evaluated = [step for step, loss in zip(metrics["steps"], metrics["eval_loss"], strict=True) if loss is not None]
    assert evaluated[-1] == 12


@pytest.mark.parametrize(("method", "extra"), [("qlora", {"use_qlora": True}), ("full", {"use_lora": False})])
def test_the_other_methods_train_too(house, config, method, extra) -> None:
    job = house.run({"kind": "finetune", "config": config | extra | {"max_steps": 3}})
    assert job["status"] == "completed", (method, job.get("failure_detail"))


@pytest.mark.parametrize(
    ("export_format", "key_file"), [("lora_adapter", "adapter_config.json"), ("huggingface", "config.json")]
)
def test_an_export_downloads_with_its_card_and_says_it_was_verified(house, trained, export_format, key_file) -> None:
    export = house.client.post(f"/api/export/{trained['job_id']}", {"export_format": export_format})
    assert export["verification"]
    link = house.client.get(f"/api/export/{trained['job_id']}/download")
    answer = httpx.get(house.settings.address + link["download_url"], trust_env=False)
    names = {Path(name).name for name in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()}
    assert {key_file, "README.md"} <= names


def test_an_export_can_be_asked(house, trained, split) -> None:
    export = house.run({"kind": "export", "job_id": trained["job_id"], "export_format": "huggingface"})
    spec = {"kind": "generate", "export_id": export["job_id"], "data_path": split["test_path"], "max_new_tokens": 4}
    job = house.run(spec)
    assert job["status"] == "completed", job.get("failure_detail")
    assert len(job["result"]["answers"]) == 3


def test_socket_and_stream_replay_the_same_complete_log(house, trained) -> None:
    job_id = trained["job_id"]
    stored = house.client.get(f"/api/jobs/{job_id}/events?after=0&limit=500")["events"]
    assert stored[0]["event"]["type"] == "job.submitted"
    assert stored[-1]["event"]["type"] == "job.completed"
    wanted = [entry["seq"] for entry in stored]
    assert _seqs_over_socket(house, job_id, wanted[-1]) == wanted
    assert _seqs_over_sse(house, job_id, wanted[-1]) == wanted


def _seqs_over_socket(house, job_id: str, last: int) -> list[int]:
    seen: list[int] = []
    address = house.settings.address.replace("http", "ws")
    with connect(f"{address}/api/train/{job_id}/ws?after=0", proxy=None) as socket:
        while last not in seen:
            frame = json.loads(socket.recv(timeout=10))
            seen += [entry["seq"] for entry in frame.get("events", []) if "seq" in entry]
    return seen


def _seqs_over_sse(house, job_id: str, last: int) -> list[int]:
    seen: list[int] = []
    address = f"{house.settings.address}/api/events?job={job_id}&after=0"
    with httpx.stream("GET", address, trust_env=False, timeout=10) as answer:
        for line in answer.iter_lines():
            if line.startswith("id:"):
                seen.append(int(line.removeprefix("id:")))
            if last in seen:
                return seen
    return seen
