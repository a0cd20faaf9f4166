"""The general door: any kind of job, its events, its log, and what can be done to it."""

import os
from datetime import UTC, datetime

from jobs import events
from jobs.lifecycle import Status
from jobs.specs import Kind, ValidateSpec
from service import answers
from service.records import JobRecord


def _submit(http, **spec):
    answer = http.post("/api/jobs", json=spec)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/jobs/{answer.json()['job_id']}"
    return answer.json()["job_id"]


def test_a_job_of_any_kind_is_accepted_and_shown_with_its_result(house, http, dataset) -> None:
    job_id = _submit(http, kind="validate", data_path=dataset)
    house.wait_for(job_id, lambda job: job.has_ended)
    job = http.get(f"/api/jobs/{job_id}").json()
    assert (job["kind"], job["status"], job["attempt"]) == ("validate", "completed", 1)
    assert job["spec"] == {"kind": "validate", "data_path": dataset, "format_type": "llava", "level": "basic"}
    assert job["result"]["kind"] == "validate"
    assert (job["failure_reason"], job["waiting_reason"], job["queue_position"]) == (None, None, None)
    assert job["progress_percentage"] == 100.0


def test_a_job_of_no_known_kind_is_refused(http) -> None:
    for body in ({"kind": "dance"}, {}, {"kind": "validate"}, {"kind": "validate", "data_path": 5}):
        assert http.post("/api/jobs", json=body).status_code == 422


def test_a_failed_job_says_why(house, http, dataset) -> None:
    async def fail(attempt) -> None:
        await attempt.begin()
        await attempt.say(events.JobNoted, message="fp16 became fp32")
        await attempt.say(events.JobFailed, reason="disk_full", detail="free some space")

    house.runner.scripts[Kind.VALIDATE] = fail
    job_id = _submit(http, kind="validate", data_path=dataset)
    house.wait_for(job_id, lambda job: job.has_ended)
    job = http.get(f"/api/jobs/{job_id}").json()
    assert (job["failure_reason"], job["failure_detail"]) == ("disk_full", "free some space")
    assert job["notes"] == ["fp16 became fp32"]


def test_pending_jobs_say_their_turn(build) -> None:
    house = build(with_runner=False)
    (house.root.datasets / "made").mkdir(parents=True)
    config = {"model_name": "demo-llava", "train_data_path": "datasets/made"}
    late = _submit(house.http, kind="validate", data_path="datasets/made")
    last = _submit(house.http, kind="validate", data_path="datasets/made")
    first = _submit(house.http, kind="finetune", config=config | {"priority": 5})
    listed = {job["job_id"]: job["queue_position"] for job in house.http.get("/api/jobs").json()["jobs"]}
    assert listed == {first: 1, late: 2, last: 3}
    assert house.http.get(f"/api/jobs/{last}").json()["queue_position"] == 3


def test_a_long_queue_is_sorted_once_a_listing(monkeypatch) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    spec = ValidateSpec(data_path="datasets/made")
    records = [
        JobRecord(job_id=f"job_{n}", spec=spec, submitted_at=at, updated_at=at, submitted_seq=n, last_seq=n)
        for n in range(2000)
    ]
    turns: list[str] = []
    turn_of = answers._turn
    monkeypatch.setattr(answers, "_turn", lambda record: turns.append(record.job_id) or turn_of(record))
    positions = answers.queue_positions(records)
    listed = [answers.job(record, positions) for record in records]
    assert len(turns) == len(records)
    assert [job.queue_position for job in listed] == list(range(1, 2001))


def test_a_job_is_shown_with_everything_but_the_bookkeeping() -> None:
    kept = set(JobRecord.__struct_fields__) - {"recorded_n", "recorded_before", "submitted_seq"}
    assert set(answers.JobAnswer.__struct_fields__) == kept | {"kind", "queue_position", "progress_percentage"}


def test_jobs_are_listed_page_by_page_newest_first(house, http, dataset) -> None:
    ids = [_submit(http, kind="validate", data_path=dataset) for _ in range(3)]
    for job_id in ids:
        house.wait_for(job_id, lambda job: job.has_ended)
    first = http.get("/api/jobs?kind=validate&limit=2").json()
    assert [job["job_id"] for job in first["jobs"]] == [ids[2], ids[1]]
    second = http.get(f"/api/jobs?kind=validate&limit=1&before={first['before']}").json()
    assert [job["job_id"] for job in second["jobs"]] == [ids[0]]
    assert all(job["kind"] == "split" for job in http.get("/api/jobs?kind=split").json()["jobs"])
    assert http.get("/api/jobs?kind=nope").status_code == 422


def test_events_are_read_behind_a_cursor(house, http, dataset) -> None:
    job_id = _submit(http, kind="validate", data_path=dataset)
    house.wait_for(job_id, lambda job: job.has_ended)
    whole = http.get(f"/api/jobs/{job_id}/events").json()
    types = [each["event"]["type"] for each in whole["events"]]
    assert types[0] == "job.submitted"
    assert types[-1] == "job.completed"
    seen = []
    after = 0
    while page := http.get(f"/api/jobs/{job_id}/events?after={after}&limit=1").json():
        if not page["events"]:
            break
        seen += page["events"]
        after = page["next"]
    assert seen == whole["events"]
    only = http.get(f"/api/jobs/{job_id}/events?types=job.started,job.placed").json()["events"]
    assert {each["event"]["type"] for each in only} == {"job.started", "job.placed"}
    for bad in ("-1", "9223372036854775808", "x", "NaN"):
        assert http.get(f"/api/jobs/{job_id}/events?after={bad}").status_code == 422


def test_the_log_is_the_end_of_the_newest_attempts_output(house, http, trained) -> None:
    assert http.get(f"/api/jobs/{trained}/log").text == ""
    for attempt, text in ((1, b"old\n"), (2, b"first\nsecond \xff\n")):
        folder = house.root.attempt(trained, attempt)
        folder.folder.mkdir(parents=True, exist_ok=True)
        folder.log.write_bytes(text)
    answer = http.get(f"/api/jobs/{trained}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.content == b"first\nsecond \xff\n"
    assert http.get(f"/api/jobs/{trained}/log?tail_bytes=11").content == b"second \xff\n"
    assert http.get(f"/api/jobs/{trained}/log?tail_bytes=0").status_code == 422


def test_a_log_grows_behind_an_offset(house, http, trained) -> None:
    empty = http.get(f"/api/jobs/{trained}/log?offset=0")
    assert (empty.text, _place(empty)) == ("", (0, 0))
    first = house.root.attempt(trained, 1)
    first.folder.mkdir(parents=True, exist_ok=True)
    first.log.write_bytes(b"one\n")
    assert _place(http.get(f"/api/jobs/{trained}/log")) == (1, 4)
    with first.log.open("ab") as file:
        file.write("zwei ü\n".encode())
    grown = http.get(f"/api/jobs/{trained}/log?offset=4")
    assert (grown.content.decode(), _place(grown)) == ("zwei ü\n", (1, 12))
    assert grown.headers["content-type"].startswith("text/plain")
    beyond = http.get(f"/api/jobs/{trained}/log?offset=99")
    assert (beyond.text, _place(beyond)) == ("", (1, 12))
    for offset in ("-1", "x", str(2**64)):
        assert http.get(f"/api/jobs/{trained}/log?offset={offset}").status_code == 422


def test_a_log_says_when_another_attempt_has_begun_it_anew(house, http, trained) -> None:
    for number in (1, 2, 10):
        folder = house.root.attempt(trained, number)
        folder.folder.mkdir(parents=True, exist_ok=True)
        folder.log.write_bytes(b"x" * number)
    assert _place(http.get(f"/api/jobs/{trained}/log?offset=2")) == (10, 10)


def test_a_long_log_comes_in_pieces(house, http, trained) -> None:
    log = house.root.attempt(trained, 1).log
    log.parent.mkdir(parents=True, exist_ok=True)
    text = os.urandom(2**20 + 5)
    log.write_bytes(text)
    first = http.get(f"/api/jobs/{trained}/log?offset=0")
    rest = http.get(f"/api/jobs/{trained}/log?offset={first.headers['x-log-offset']}")
    assert (_place(first), _place(rest)) == ((1, 2**20), (1, 2**20 + 5))
    assert first.content + rest.content == text


def _place(answer) -> tuple[int, int]:
    return int(answer.headers["x-log-attempt"]), int(answer.headers["x-log-offset"])


def test_a_training_can_be_paused_resumed_and_cancelled(house, http, dataset) -> None:
    async def train(attempt) -> None:
        await attempt.begin()
        await attempt.paused.wait()
        await attempt.say(events.JobPaused, step=1)

    house.runner.scripts[Kind.FINETUNE] = train
    job_id = _submit(http, kind="finetune", config={"model_name": "demo-llava", "train_data_path": dataset})
    assert http.post(f"/api/jobs/{job_id}/resume").status_code == 400
    house.wait_for(job_id, lambda job: job.status is Status.RUNNING)
    assert http.post(f"/api/jobs/{job_id}/pause").json()["pause_requested_at"]
    house.wait_for(job_id, lambda job: job.status is Status.PAUSED)
    assert http.post(f"/api/jobs/{job_id}/resume").json()["attempt"] == 2
    assert http.post(f"/api/jobs/{job_id}/cancel").json()["cancel_requested_at"]
    assert house.wait_for(job_id, lambda job: job.has_ended).status is Status.CANCELLED
    assert http.delete(f"/api/jobs/{job_id}").json()["success"] is True
    assert http.get(f"/api/jobs/{job_id}").status_code == 404


def test_runners_show_their_devices(http) -> None:
    (runner,) = http.get("/api/runners").json()
    assert (runner["runner_id"], runner["alive"]) == ("fake", True)
    assert runner["devices"][0]["device_id"] == "cpu"
    assert runner["heard_s_ago"] < 5
