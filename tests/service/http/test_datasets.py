"""Datasets: the list, what it tells of conversions and splits, when one is on it; and all that is known of one."""

import shutil

import msgspec
import pytest

from gpu_runner.rows import Row
from gpu_runner.sam2 import manifest
from gpu_runner.sam2.manifest import Contents, Options
from jobs import events
from jobs.results import Finding, Leak, Repair, SplitResult, ValidateResult
from jobs.specs import Kind, SplitSpec
from service.queries import Queries


@pytest.fixture
def made(house, http, uploaded, scripts):
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

        def prepare(self, name: str, **result) -> dict:
            async def prepare(attempt) -> None:
                await attempt.begin()
                made = scripts.default_result(attempt.job_id, attempt.spec)
                await attempt.complete(msgspec.structs.replace(made, **result))

            house.runner.scripts[Kind.PREPARE] = prepare
            self._folder(name)
            self._folder(f"{name}-split")
            body = {"sam2_zip_path": uploaded, "output_dir": name, "task": "point"}
            return http.post("/api/data/prepare", json=body).json()

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
    """Of this file's datasets: the service has had other visitors."""
    found = http.get("/api/data/datasets").json()["datasets"]
    return [dataset for dataset in found if dataset["name"].startswith("l/")]


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


@pytest.mark.parametrize(("path", "most"), [("", 1), ("/l/c0", 6)])
def test_a_longer_list_asks_the_database_no_more(house, http, made, monkeypatch, path, most) -> None:
    asked = []
    read = Queries._rows

    def count(self, sql, values=None):
        asked.append(sql)
        return read(self, sql, values)

    monkeypatch.setattr(Queries, "_rows", count)
    for number in range(4):
        made.split(made.convert(f"l/d{number}"), f"l/c{number}")
        made.validate(f"l/d{number}")
        if number in (0, 3):
            asked.clear()
            assert http.get(f"/api/data/datasets{path}").status_code == 200
            assert len(asked) <= most, asked
    assert [each["validation"]["result"] for each in _list(http)] == ["passed"] * 8


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


def _detail(http, name: str, prefix: str = "/api"):
    return http.get(f"{prefix}/data/datasets/{name}")


@pytest.mark.parametrize("prefix", ["/api", "/api/training"])
def test_a_preparation_made_two_datasets_with_one_check(http, made, prefix) -> None:
    made.prepare("l/birds")
    cut, whole = _list(http)
    assert [(each["name"], each["kind"], each["format"], each["task"]) for each in (cut, whole)] == [
        ("l/birds-split", "split", "llava", "point"), ("l/birds", "converted", "llava", "point"),
    ]  # fmt: skip
    assert cut["job_id"] == whole["job_id"] == cut["validation"]["job_id"] == whole["validation"]["job_id"]
    told = _detail(http, "l/birds-split", prefix).json()
    assert {name: told[name] for name in cut} == cut
    steps = [(origin["name"], origin["spec"]["kind"], origin["job_kind"]) for origin in told["lineage"]]
    assert steps == [("datasets/l/birds-split", "split", "prepare"), ("datasets/l/birds", "convert", "prepare")]
    (report,) = told["reports"]
    assert (report["data_path"], report["result"], report["job_kind"]) == ("datasets/l/birds", "passed", "prepare")
    assert report["markdown_url"] == f"{prefix}/data/download_validation_report/{cut['job_id']}"
    assert report["json_url"] is None
    assert told["divided"]["train_samples"] == 1
    assert _detail(http, "l/birds").json()["splits"] == ["l/birds-split"]


def test_a_training_on_a_prepared_dataset_that_failed_its_checks_is_refused(house, http, made) -> None:
    failed = _validation("x", "failed")
    made.prepare("l/bad", validate=failed, split=None, passed=False, success=False)
    (house.root.datasets / "l/bad/llava_dataset.jsonl").write_text("{}\n")
    assert [(each["name"], each["validation"]["result"]) for each in _list(http)] == [("l/bad", "failed")]
    config = {"model_name": "demo-llava", "train_data_path": "l/bad"}
    assert http.post("/api/train/start", json={"config": config}).status_code == 409
    allowed = http.post("/api/train/start", json={"config": config | {"allow_invalid_data": True}})
    assert allowed.status_code == 200
    house.wait_for(allowed.json()["job_id"], lambda job: job.has_ended)


def test_a_preparation_that_is_removed_takes_its_datasets_from_the_list(http, made) -> None:
    made.prepare("l/removed")
    (job_id,) = {each["job_id"] for each in _list(http)}
    assert http.delete(f"/api/jobs/{job_id}").status_code == 200
    assert _list(http) == []
    assert _detail(http, "l/removed").status_code == 404


def _manifest(house, name: str, pictures: int = 1) -> None:
    """What a conversion writes into the folder of a dataset that two exports went into."""
    options = Options(
        target_format="coco", task="classify", mask_order="auto", keep_empty_frames=False, embed_images=True, seed=42
    )
    exports = [
        manifest.Source(
            sha256=f"{number}", upload=f"{number}.zip", format="sam2", mask_order="row", mask_order_reason="boxes agree"
        )
        for number in range(2)
    ]
    contents = Contents()
    for number in range(2):
        contents.count(Row(id=f"{number}", video_id=f"v{number % 2}", conversations=(), labels=("red",)))
    files = {f"images/v/frame_{number:06d}.png": "ab" * 32 for number in range(pictures)}
    folder = house.root.datasets / name
    manifest.write_digests(folder, files)
    manifest.write(folder, manifest.of(options, exports, contents, files))


@pytest.mark.parametrize("pictures", [2, 170_000])
def test_a_dataset_knows_the_exports_it_goes_back_to_also_when_the_conversion_is_forgotten(
    house, http, made, pictures
) -> None:
    made.convert("l/birds")
    _manifest(house, "l/birds", pictures)
    source = _detail(http, "l/birds").json()["source"]
    exports = [
        {"sha256": f"{number}", "upload": f"{number}.zip", "format": "sam2", "mask_order": "row",
         "mask_order_reason": "boxes agree"} for number in range(2)
    ]  # fmt: skip
    assert {name: source.pop(name) for name in exports[1]} == exports[1]
    assert (source.pop("sources"), source.pop("videos"), source.pop("options")["seed"]) == (exports, 2, 42)
    assert source.pop("software_version")
    assert not source
    made.split("datasets/l/birds", "l/cut")
    whole = _detail(http, "l/birds").json()
    assert http.delete(f"/api/jobs/{whole['job_id']}").status_code == 200
    assert _detail(http, "l/cut").json()["source"] == whole["source"]


@pytest.mark.parametrize(
    "damaged", ["", "[]", '{"videos": 5}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_damaged_manifest_hides_nothing_else(house, http, made, damaged) -> None:
    made.convert("l/birds")
    file = house.root.datasets / "l/birds/manifest.json"
    file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    told = _detail(http, "l/birds")
    assert (told.status_code, told.json()["source"]["upload"]) == (200, "export.zip")


def test_every_report_since_it_was_made_is_listed_and_the_newest_counts(http, made) -> None:
    made.convert("l/a")
    made.validate("l/a")
    made.convert("l/a")
    for result in ("passed", "failed", "passed_with_warnings"):
        made.validate("l/a", result)
    made.split("datasets/l/a", "l/cut")
    for name in ("l/a", "l/cut"):
        told = _detail(http, name).json()
        assert [report["result"] for report in told["reports"]] == ["passed_with_warnings", "failed", "passed"]
        assert told["checked"]["report_id"] == told["reports"][0]["job_id"]


def test_findings_leaks_and_repairs_are_told_as_the_jobs_said_them(http, made) -> None:
    finding = Finding(rule="masks", severity="warning", message="two", count=2, rows=("a", "b"), remedy="mend")
    statistics = {"total_samples": 3, "area": {"edges": [0.0, 0.5, 1.0], "counts": [2, 1]}}
    checked = msgspec.structs.replace(_validation("x", "passed"), warnings=(finding,), statistics=statistics)
    leak = Leak(rows=10, near=9, near_share=0.9, distances={"1": 9, "none": 1}, look_alikes=2)
    request = SplitSpec(data_path="datasets/l/b", output_dir="datasets/l/b-split", strategy="temporal")
    repair = Repair(request=request, before={"val": leak}, after={"val": leak}, message="less")
    paths = {f"{part}_path": f"datasets/l/b-split/{part}.jsonl" for part in ("train", "val", "test")}
    divided = SplitResult(
        **paths, train_samples=1, val_samples=1, test_samples=1, class_shares={"train": {"red": 0.5}},
        leakage={"val": leak}, repair=repair,
    )  # fmt: skip
    made.prepare("l/b", validate=checked, split=divided)
    told = _detail(http, "l/b-split").json()
    assert told["checked"]["warnings"][0]["remedy"] == "mend"
    assert told["checked"]["statistics"] == statistics
    assert told["divided"]["leakage"]["val"]["near_share"] == 0.9
    assert told["divided"]["repair"]["request"]["strategy"] == "temporal"
    assert told["divided"]["class_shares"] == {"train": {"red": 0.5}}


@pytest.mark.parametrize(
    "name", ["nothing", "a/b/c", "..", "%2e%2e/x", "a%00b", "~root", "x" * 400, "%d9%a1", "a%0ab", "datasets", "1'--"]
)
def test_a_name_of_no_dataset_is_404(http, name) -> None:
    answer = _detail(http, name)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
