"""The list of datasets: what it tells of conversions and splits, and when one is on it."""

import shutil

import pytest

from jobs import events
from jobs.results import ValidateResult
from jobs.specs import Kind


@pytest.fixture
def made(house, http, uploaded):
    """Converts and splits for real as far as the store and the disk are concerned."""

    class Made:
        def convert(self, name: str, **changes) -> str:
            self._folder(name)
            body = {"sam2_zip_path": uploaded, "output_dir": name, "target_format": "coco", "task": "classify"}
            return http.post("/api/data/convert", json=body | changes).json()["output_dir"]

        def split(self, source: str, name: str) -> dict:
            self._folder(name)
            body = {"data_path": source, "output_dir": name, "strategy": "temporal"}
            return http.post("/api/data/split", json=body).json()

        def validate(self, name: str, result: str = "passed") -> None:
            async def find(attempt) -> None:
                await attempt.begin()
                await attempt.say(events.JobCompleted, result=_validation(attempt.job_id, result))

            house.runner.scripts[Kind.VALIDATE] = find
            assert http.post("/api/data/validate", json={"data_path": name}).status_code == 200

        def _folder(self, name: str) -> None:
            (house.root.datasets / name).mkdir(parents=True, exist_ok=True)

    yield Made()
    shutil.rmtree(house.root.datasets / "l")


def _validation(report_id: str, result: str) -> ValidateResult:
    return ValidateResult(
        passed=result != "failed", result=result, num_errors=int(result == "failed"), num_warnings=2, errors=(),
        warnings=(), statistics={}, recommendations=(), report_id=report_id,
    )  # fmt: skip


def _list(http) -> list[dict]:
    return http.get("/api/data/datasets").json()["datasets"]


def test_a_conversion_is_listed_with_what_it_made(http, made) -> None:
    made.convert("l/birds")
    dataset = _list(http)[0]
    job = http.get(f"/api/jobs/{dataset['job_id']}").json()
    assert dataset == {
        "name": "l/birds", "data_path": "datasets/l/birds", "kind": "converted", "job_id": job["job_id"],
        "format": "coco", "task": "classify", "num_samples": 3, "labels": {"red": 3},
        "created_at": job["completed_at"], "split": None, "validation": None, "warnings": [],
    }  # fmt: skip


def test_a_split_is_listed_with_its_files_and_what_it_was_cut_from(http, made) -> None:
    source = made.convert("l/birds")
    answered = made.split(source, "l/cut")
    dataset = _list(http)[0]
    assert (dataset["name"], dataset["kind"], dataset["format"], dataset["task"]) == (
        "l/cut", "split", "coco", "classify",
    )  # fmt: skip
    assert (dataset["num_samples"], dataset["labels"]) == (3, {"red": 3})
    told = dataset["split"]
    assert (told.pop("source"), told.pop("strategy")) == (source, "temporal")
    assert told == {name: answered[name] for name in told}
    assert set(told) == {f"{part}_path" for part in ("train", "val", "test")} | {
        f"{part}_samples" for part in ("train", "val", "test", "guard")
    }


def test_newer_ones_come_first_and_a_folder_made_again_is_listed_once(http, made) -> None:
    made.convert("l/a")
    made.convert("l/b")
    made.convert("l/a", task="detect")
    assert [(dataset["name"], dataset["task"]) for dataset in _list(http)] == [("l/a", "detect"), ("l/b", "classify")]


def test_the_newest_validation_since_it_was_made_counts_also_for_its_split(http, made) -> None:
    source = made.convert("l/a")
    made.split(source, "l/cut")
    made.validate(source)
    made.validate(source, "failed")
    cut, whole = _list(http)
    assert whole["validation"] == cut["validation"]
    told = whole["validation"]
    assert (told["result"], told["num_errors"], told["num_warnings"]) == ("failed", 1, 2)
    assert http.get(f"/api/jobs/{told['job_id']}").json()["result"]["report_id"] == told["report_id"]
    made.convert("l/a")
    assert [dataset["validation"] for dataset in _list(http)] == [None, None]


def test_what_a_split_says_of_its_data_is_what_decides_over_a_training(house, http, made) -> None:
    made.split(made.convert("l/a"), "l/cut")
    train = house.root.datasets / "l/cut/train.jsonl"
    train.write_text("{}\n")
    made.validate("datasets/l/cut/train.jsonl", "failed")
    assert _list(http)[0]["validation"]["result"] == "failed"
    config = {"model_name": "demo-llava", "train_data_path": "datasets/l/cut/train.jsonl"}
    assert http.post("/api/train/start", json={"config": config}).status_code == 409


def test_a_dataset_whose_folder_went_away_is_not_listed(house, http, made) -> None:
    made.convert("l/a")
    made.convert("l/b")
    shutil.rmtree(house.root.datasets / "l/b")
    assert [dataset["name"] for dataset in _list(http)] == ["l/a"]


def test_a_conversion_that_failed_makes_no_dataset(house, http, made, uploaded) -> None:
    async def fail(attempt) -> None:
        await attempt.begin()
        await attempt.say(events.JobFailed, reason="internal", detail="no")

    made.convert("l/a")
    house.runner.scripts[Kind.CONVERT] = fail
    http.post("/api/data/convert", json={"sam2_zip_path": uploaded, "output_dir": "l/a"})
    assert [dataset["task"] for dataset in _list(http)] == ["classify"]


def test_a_split_outlives_the_conversion_it_goes_back_to(http, made) -> None:
    made.split(made.convert("l/once"), "l/cut")
    (conversion,) = [dataset["job_id"] for dataset in _list(http) if dataset["kind"] == "converted"]
    assert http.delete(f"/api/jobs/{conversion}").status_code == 200
    (cut,) = _list(http)
    assert (cut["name"], cut["format"], cut["task"], cut["labels"]) == ("l/cut", None, None, {})
