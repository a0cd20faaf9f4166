"""The route that does it all: as JSON over an uploaded export, or as a form that brings it along."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import events
from jobs.specs import Kind

PREFIXES = ("/api", "/api/training")


@pytest.fixture
def export() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("annotations.json", b"{}")
    return file.getvalue()


@pytest.fixture
def send(http, export):
    """Sends a form; `options` as text, or as what is to be JSON."""

    def form(options=None, *, prefix: str = "/api", name: str = "birds.zip", **headers: str):
        files = {"file": (name, export, "application/zip")}
        text = options if isinstance(options, str | bytes | None) else json.dumps(options)
        data = {} if text is None else {"options": text}
        return http.post(f"{prefix}/data/prepare", files=files, data=data, headers=headers)

    return form


def _stored(house) -> set[str]:
    return {str(path) for path in house.root.uploads.glob("*/*")}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_uploaded_export_is_prepared_as_json_asks(http, uploaded, prefix) -> None:
    answer = http.post(f"{prefix}/data/prepare", json={"sam2_zip_path": uploaded, "output_dir": "p/birds"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["success"], body["passed"], body["num_samples"]) == (True, True, 3)
    assert body["output_dir"] == body["convert"]["output_dir"] == "datasets/p/birds"
    assert body["split"]["train_path"] == "datasets/p/birds-split/train.jsonl"
    assert body["validate"]["statistics"]["total_samples"] == 3


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_form_brings_the_export_along_and_names_the_dataset(house, http, send, prefix) -> None:
    answer = send(prefix=prefix)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output_dir"] == "datasets/birds"
    spec = http.get("/api/jobs?kind=prepare&limit=1").json()["jobs"][0]["spec"]
    assert spec["sam2_zip_path"].endswith("/birds.zip")
    assert house.root.path_of(spec["sam2_zip_path"]).is_file()


def test_options_of_a_form_are_those_of_the_job(http, send) -> None:
    options = {"output_dir": "p/named", "task": "polygon", "train_ratio": 0.6, "val_ratio": 0.2, "test_ratio": 0.2}
    assert send(options).json()["output_dir"] == "datasets/p/named"
    spec = http.get("/api/jobs?kind=prepare&limit=1").json()["jobs"][0]["spec"]
    assert (spec["task"], spec["train_ratio"], spec["strategy"]) == ("polygon", 0.6, "temporal")


def test_any_name_of_a_file_names_a_dataset(send) -> None:
    for name in ("uploads.zip", "jobs.zip", "my export; $(id).zip"):
        answer = send(name=name)
        assert answer.status_code == 200, answer.text
        assert answer.json()["output_dir"].startswith("datasets/")


def test_a_dataset_that_nobody_named_replaces_none(house, send) -> None:
    (house.root.datasets / "terns").mkdir(parents=True)
    (house.root.datasets / "terns-2-split").mkdir()
    assert send(name="terns.zip").json()["output_dir"] == "datasets/terns-3"
    assert send({"output_dir": "terns"}, name="terns.zip").json()["output_dir"] == "datasets/terns"


def test_datasets_that_are_made_at_once_have_names_of_their_own(house, http, scripts, send) -> None:
    house.runner.scripts[Kind.PREPARE] = scripts.run_until_stopped
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: send(name="wrens.zip", prefer="respond-async"), range(4)))
    jobs = [answer.json()["job_id"] for answer in answers]
    named = {http.get(f"/api/jobs/{job_id}").json()["spec"]["output_dir"] for job_id in jobs}
    for job_id in jobs:
        http.post(f"/api/jobs/{job_id}/cancel")
        house.wait_for(job_id, lambda job: job.has_ended)
    assert named == {"datasets/wrens", *(f"datasets/wrens-{number}" for number in (2, 3, 4))}


def test_a_preparation_that_takes_long_is_answered_with_its_address(house, http, send) -> None:
    answer = send(prefer="respond-async")
    assert answer.status_code == 202
    house.wait_for(answer.json()["job_id"], lambda job: job.has_ended)
    assert http.get(answer.headers["location"]).json()["result"]["kind"] == "prepare"


def test_a_preparation_that_fails_answers_with_its_reason_and_keeps_the_export(house, send) -> None:
    async def fail(attempt) -> None:
        await attempt.begin()
        await attempt.say(events.JobFailed, reason="dataset_invalid", detail="annotations.json has no video")

    house.runner.scripts[Kind.PREPARE] = fail
    before = _stored(house)
    answer = send()
    assert (answer.status_code, answer.json()["code"]) == (422, "dataset_invalid")
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(_stored(house) - before) == 1


@pytest.mark.parametrize(
    ("options", "status", "path"),
    [
        ({"task": "sing"}, 422, "task"),
        ({"train_ratio": 5}, 422, "train_ratio"),
        ({"unknown": 1}, 422, "unknown"),
        ({"sam2_zip_path": "uploads/x/y.zip"}, 422, "sam2_zip_path"),
        ({"output_dir": None}, 422, "output_dir"),
        ({"split_dir": "datasets/birds"}, 422, "split_dir"),
        ({"train_ratio": 0.9, "val_ratio": 0.5}, 400, None),
        ({"output_dir": "../../etc"}, 422, None),
        ({"add_to": "nothing"}, 404, None),
        ("[]", 422, "options"),
        ("null", 422, "options"),
        ("{", 422, "options"),
        (b"\xff\xfe", 422, None),
        ('{"seed": NaN}', 422, "options"),
        ('{"seed": 1e999}', 422, None),
        ('{"seed": ' + "9" * 5000 + "}", 422, None),
        ('{"task": "point", "task": "detect"}', 422, None),
        ('{"task": "\\u0000"}', 422, None),
        ('{"task": "\\ud800"}', 422, None),
        ("[" * 100_000, 400, None),
        ('{"a": "' + "x" * 2**20 + '"}', 413, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_options_that_cannot_be_are_refused_and_the_export_goes_again(house, send, options, status, path) -> None:
    before = _stored(house)
    answer = send(options)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if path is not None:
        assert [each["path"] for each in answer.json()["errors"]] == [path]
    assert _stored(house) == before


def test_a_form_without_its_file_or_with_two_is_refused(house, http, export) -> None:
    before = _stored(house)
    file = ("birds.zip", export)
    for files in (
        [("options", (None, "{}"))],
        [("file", file), ("file", file)],
        [("file", file), ("options", (None, "{}")), ("options", (None, "{}"))],
        [("file", ("birds.txt", export))],
        [("file", ("birds.zip", b"no archive"))],
    ):
        answer = http.post("/api/data/prepare", files=files)
        assert answer.status_code in (400, 422), answer.text
    assert _stored(house) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"null", 422), (b"[]", 422), (b"{", 422), (b"\xff", 422), (b'{"output_dir": "x"}', 422),
        (b"[" * 1000, 400), (b'{"a": 1, "a": 2}', 422), (b"x" * (2**20 + 1), 413),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_a_body_that_cannot_be_is_refused(http, body, status) -> None:
    answer = http.post("/api/data/prepare", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text


def test_every_fault_of_a_body_is_named(http) -> None:
    answer = http.post("/api/data/prepare", json={"task": "sing", "seed": -1})
    assert [each["path"] for each in answer.json()["errors"]] == ["sam2_zip_path", "output_dir", "task", "seed"]


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded"])
def test_another_kind_of_body_is_none(http, media) -> None:
    answer = http.post("/api/data/prepare", content=b"{}", headers={"content-type": media})
    assert answer.status_code == 415


def test_without_a_runner_nothing_is_recorded_nor_kept(build, export) -> None:
    house = build(with_runner=False)
    answer = house.http.post("/api/data/prepare", files={"file": ("birds.zip", export)})
    assert (answer.status_code, answer.json()["code"]) == (503, "no_runner")
    assert _stored(house) == set()
