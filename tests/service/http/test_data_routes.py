"""The synchronous data routes: results, failures, waiting, leaving early, and nobody there to do the work."""

import asyncio
import threading

import httpx
import pytest
from waiting import until

from jobs import events
from jobs.errors import FailureReason
from jobs.lifecycle import Status
from jobs.specs import Kind
from service import problems


def _convert(uploaded: str, **changes) -> dict:
    return {"sam2_zip_path": uploaded, "output_dir": "out/llava", "target_format": "llava"} | changes


def test_convert_answers_with_the_jobs_result(http, uploaded) -> None:
    answer = http.post("/api/data/convert", json=_convert(uploaded))
    assert answer.status_code == 200
    body = answer.json()
    assert (body["success"], body["num_samples"], body["warnings"]) == (True, 3, [])
    assert body["output_dir"] == "datasets/out/llava"


def test_validate_and_split_answer_with_their_results(http, dataset) -> None:
    report = http.post("/api/data/validate", json={"data_path": dataset, "format_type": "llava"}).json()
    assert (report["passed"], report["num_errors"], report["statistics"]["total_samples"]) == (True, 0, 3)
    split = http.post("/api/data/split", json={"data_path": dataset, "output_dir": "out/split"}).json()
    assert split["train_path"] == "datasets/out/split/train.jsonl"
    assert split["guard_samples"] == 0


def test_ratios_that_do_not_add_up_are_400_and_one_beyond_its_bound_is_422(http, dataset) -> None:
    ratios = {"data_path": dataset, "output_dir": "out", "train_ratio": 0.8, "val_ratio": 0.3, "test_ratio": 0.1}
    assert http.post("/api/data/split", json=ratios).status_code == 400
    answer = http.post("/api/data/split", json=ratios | {"train_ratio": 0.01})
    assert answer.status_code == 422
    assert [each["path"] for each in answer.json()["errors"]] == ["train_ratio"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/nonexistent/x.zip",
        "..",
        "a/../../b",
        "%2e%2e%2f",
        "file:///etc/passwd",
        "~root/x",
        "a\nb",
        "  ",
    ],
)
def test_a_path_outside_is_refused_the_same_whether_it_exists_or_not(http, path) -> None:
    answer = http.post("/api/data/convert", json=_convert(path))
    assert answer.status_code == 422
    assert "/work" not in answer.text
    assert "Traceback" not in answer.text


def test_a_file_that_is_missing_below_the_root_is_404(http) -> None:
    answer = http.post("/api/data/validate", json={"data_path": "datasets/nothing/train.jsonl"})
    assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")


@pytest.mark.parametrize("reason", list(FailureReason))
def test_a_failed_job_answers_with_the_status_of_its_reason(house, http, uploaded, reason) -> None:
    async def fail(attempt) -> None:
        await attempt.begin()
        await attempt.say(events.JobFailed, reason=reason, detail="row 3 has no label: add one")

    house.runner.scripts[Kind.CONVERT] = fail
    answer = http.post("/api/data/convert", json=_convert(uploaded))
    assert answer.status_code == problems.REASON_STATUS[reason]
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["message"]) == (reason.value, "row 3 has no label: add one")


def test_respond_async_answers_202_at_once_with_the_jobs_address(house, http, uploaded) -> None:
    for prefix in ("/api", "/api/training"):
        headers = {"prefer": "respond-async"}
        answer = http.post(f"{prefix}/data/convert", json=_convert(uploaded), headers=headers)
        assert answer.status_code == 202
        address = answer.headers["location"]
        assert address == answer.json()["status_url"]
        assert address.startswith(f"{prefix}/jobs/")
        house.wait_for(answer.json()["job_id"], lambda job: job.status is Status.COMPLETED)
        assert http.get(address).json()["result"]["num_samples"] == 3


def test_wait_bounds_the_waiting(house, http, uploaded, scripts) -> None:
    house.runner.scripts[Kind.CONVERT] = scripts.run_until_stopped
    answer = http.post("/api/data/convert", json=_convert(uploaded), headers={"prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert http.post(f"/api/jobs/{answer.json()['job_id']}/cancel").status_code == 200
    house.wait_for(answer.json()["job_id"], lambda job: job.status is Status.CANCELLED)


def test_a_job_that_is_cancelled_meanwhile_is_a_conflict(house, http, uploaded, scripts) -> None:
    house.runner.scripts[Kind.CONVERT] = scripts.run_until_stopped
    waiting = _Waiting(lambda: http.post("/api/data/convert", json=_convert(uploaded)))
    job = _newest_running(house, Kind.CONVERT)
    http.post(f"/api/jobs/{job.job_id}/cancel")
    assert (waiting.answer().status_code, waiting.answer().json()["code"]) == (409, "job_cancelled")


def test_a_client_that_leaves_frees_its_handler_and_the_job_goes_on(house, http, uploaded, scripts) -> None:
    house.runner.scripts[Kind.CONVERT] = scripts.run_until_stopped
    with pytest.raises(httpx.ReadTimeout):
        http.post("/api/data/convert", json=_convert(uploaded), timeout=httpx.Timeout(5, read=0.3))
    job = _newest_running(house, Kind.CONVERT)
    until(lambda: job.job_id not in house.app.state.hub._expected)
    assert house.run(house.app.state.recorder.job(job.job_id)).status is Status.RUNNING
    http.post(f"/api/jobs/{job.job_id}/cancel")
    house.wait_for(job.job_id, lambda job: job.has_ended)


def test_without_a_runner_nothing_is_recorded_unless_the_client_says_so(build, scripts) -> None:
    house = build(with_runner=False)
    folder = house.root.datasets / "made"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("{}\n")
    body = {"data_path": "datasets/made"}
    answer = house.http.post("/api/data/validate", json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_runner")
    assert int(answer.headers["retry-after"]) > 0
    assert house.http.get("/api/jobs").json()["jobs"] == []
    answer = house.http.post("/api/data/validate", json=body, headers={"prefer": "respond-async"})
    assert answer.status_code == 202
    job = house.http.get(answer.headers["location"]).json()
    assert (job["status"], job["queue_position"]) == ("pending", 1)


def test_a_service_that_ends_answers_202_to_those_who_wait(build, scripts) -> None:
    house = build()
    (house.root.datasets / "made").mkdir(parents=True)
    house.runner.scripts[Kind.VALIDATE] = scripts.run_until_stopped
    waiting = _Waiting(lambda: house.http.post("/api/data/validate", json={"data_path": "datasets/made"}))
    _newest_running(house, Kind.VALIDATE)
    house.stop()
    assert waiting.answer().status_code == 202


@pytest.mark.parametrize("kind", [Kind.VALIDATE, Kind.PREPARE])
def test_a_report_is_a_markdown_file_or_json(house, http, dataset, uploaded, kind) -> None:
    async def check(attempt) -> None:
        await attempt.begin()
        folder = house.root.attempt(attempt.job_id, 1)
        folder.folder.mkdir(parents=True)
        folder.report.write_text("# Report\n")
        folder.report_data.write_text('{"passed": true}')
        await attempt.complete()

    house.runner.scripts[kind] = check
    if kind is Kind.VALIDATE:
        report_id = http.post("/api/data/validate", json={"data_path": dataset}).json()["report_id"]
    else:
        body = {"sam2_zip_path": uploaded, "output_dir": "out/reported"}
        report_id = http.post("/api/data/prepare", json=body).json()["validate"]["report_id"]
    address = f"/api/data/download_validation_report/{report_id}"
    for query, text, media, name in (
        ("", "# Report\n", "text/markdown", ".md"),
        ("?format=markdown", "# Report\n", "text/markdown", ".md"),
        ("?format=json", '{"passed": true}', "application/json", ".json"),
    ):
        answer = http.get(address + query)
        assert (answer.status_code, answer.text) == (200, text)
        assert answer.headers["content-type"].startswith(media)
        assert answer.headers["content-disposition"] == f'attachment; filename="validation_report_{report_id}{name}"'
    assert http.get(f"{address}?format=xml").status_code == 422
    house.root.attempt(report_id, 1).report_data.unlink()
    missing = http.get(f"{address}?format=json")
    assert (missing.status_code, missing.json()["code"]) == (404, "report_not_found")
    for unknown in ("nope", "..", "%2e%2e"):
        assert http.get(f"/api/data/download_validation_report/{unknown}").status_code == 404


class _Waiting:
    """A request under way in a thread."""

    def __init__(self, request) -> None:
        self._answer = None
        self._thread = threading.Thread(target=self._ask, args=(request,))
        self._thread.start()

    def _ask(self, request) -> None:
        self._answer = request()

    def answer(self):
        self._thread.join(10)
        assert self._answer is not None
        return self._answer


def _newest_running(house, kind: Kind):
    async def find():
        recorder = house.app.state.recorder
        with house.app.state.hub.subscribe(types=frozenset({"job.started"})) as news:
            while True:
                for job in recorder.live.values():
                    if job.kind is kind and job.status is Status.RUNNING:
                        return job
                await anext(news)

    return house.run(asyncio.wait_for(find(), 10))
