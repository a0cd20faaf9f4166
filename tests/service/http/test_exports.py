"""Exports: made, found, downloaded in parts, expired, removed."""

import hashlib
import time
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from jobs.errors import UnknownExport
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import Kind
from service import links

PREFIXES = ("/api", "/api/training")


@pytest.fixture
def content(house, scripts) -> bytes:
    """Exports write this archive."""
    content = bytes(range(256)) * 8

    async def export(attempt) -> None:
        folder = house.root.export(attempt.job_id)
        folder.mkdir(parents=True)
        (folder / "model.zip").write_bytes(content)
        await attempt.begin()
        result = scripts.default_result(attempt.job_id, attempt.spec)
        sha256 = hashlib.sha256(content).hexdigest()
        await attempt.complete(msgspec.structs.replace(result, archive_sha256=sha256))

    house.runner.scripts[Kind.EXPORT] = export
    return content


def _export(http, training: str, **body) -> dict:
    answer = http.post(f"/api/export/{training}", json={"export_format": "lora_adapter"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_export_is_made_with_and_without_the_jobs_id_in_the_body(http, trained, content) -> None:
    first = _export(http, trained, generate_model_card=True, merge_adapters=False)
    assert (first["success"], first["export_format"]) == (True, "lora_adapter")
    assert first["model_card_path"]
    second = _export(http, trained, job_id=trained)
    assert second["export_id"] != first["export_id"]
    answer = http.post(f"/api/export/{trained}", json={"export_format": "lora_adapter", "job_id": "other"})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "job_id")


def test_what_cannot_be_exported_is_refused(house, http, trained, dataset, scripts) -> None:
    assert http.post(f"/api/export/{trained}", json={"export_format": "nonsense"}).status_code == 422
    assert http.post(f"/api/export/{trained}", json={"export_format": "tflite"}).status_code == 501
    assert http.post("/api/export/nope", json={"export_format": "lora_adapter"}).status_code == 404
    house.runner.scripts[Kind.FINETUNE] = scripts.run_until_stopped
    config = {"model_name": "demo-llava", "train_data_path": dataset}
    running = http.post("/api/train/start", json={"config": config}).json()["job_id"]
    assert http.post(f"/api/export/{running}", json={"export_format": "lora_adapter"}).status_code == 400
    http.post(f"/api/train/{running}/cancel")
    house.wait_for(running, lambda job: job.has_ended)


def test_the_newest_export_is_found_and_downloaded_under_both_prefixes(http, trained, content) -> None:
    _export(http, trained)
    newest = _export(http, trained)["export_id"]
    for prefix in PREFIXES:
        info = http.get(f"{prefix}/export/{trained}/download").json()
        assert info["download_url"] == f"{prefix}/export/download_file/{newest}"
        assert info["expires_at"] is None
        answer = http.get(info["download_url"])
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"] == "application/zip"
        assert info["filename"] in answer.headers["content-disposition"]
        assert int(answer.headers["content-length"]) == len(content)
        assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-99", 0, 100), ("bytes=2000-", 2000, 2048), ("bytes=-48", 2000, 2048), ("bytes=2040-9999", 2040, 2048)],
)
def test_a_part_can_be_asked_for(http, trained, content, asked, begin, end) -> None:
    url = _link(http, trained)
    answer = http.get(url, headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, content[begin:end])
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/2048"
    assert answer.headers["content-length"] == str(end - begin)


@pytest.mark.parametrize(
    "asked", ["bytes=2048-", "bytes=9-2", "bytes=-", "lines=1-2", "bytes=-0", "bytes=" + "0-1," * 5000, "bytes=0-9,20-"]
)
def test_a_part_that_is_not_there_is_416(http, trained, content, asked) -> None:
    answer = http.get(_link(http, trained), headers={"range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */2048")


def test_a_changed_file_is_sent_whole(http, trained, content) -> None:
    headers = {"range": "bytes=0-9", "if-range": '"other"'}
    assert http.get(_link(http, trained), headers=headers).status_code == 200


def test_exports_are_listed_newest_first_and_removed_one_by_one(http, trained, content) -> None:
    kept, removed = _export(http, trained)["export_id"], _export(http, trained)["export_id"]
    rows = http.get("/api/export/list").json()
    assert rows["total"] == len(rows["exports"])
    assert [row["export_id"] for row in rows["exports"][:2]] == [removed, kept]
    assert http.delete(f"/api/export/{removed}").json()["success"] is True
    assert http.delete(f"/api/export/{removed}").status_code == 404
    assert http.get(f"/api/export/download_file/{removed}").status_code == 404
    assert http.get(f"/api/export/download_file/{kept}").status_code == 200


def test_an_archive_that_was_replaced_by_a_link_is_not_served(house, http, trained, content) -> None:
    export_id = _export(http, trained)["export_id"]
    archive = house.root.export(export_id) / "model.zip"
    archive.unlink()
    assert http.get(f"/api/export/download_file/{export_id}").status_code == 404
    archive.symlink_to("/etc/passwd")
    assert http.get(f"/api/export/download_file/{export_id}").status_code == 422


def test_a_link_that_expired_is_gone_and_a_new_one_can_be_had(build, monkeypatch) -> None:
    house = build(export_link_h=1.0)
    (house.root.datasets / "made").mkdir(parents=True)
    config = {"model_name": "demo-llava", "train_data_path": "datasets/made"}
    job_id = house.http.post("/api/train/start", json={"config": config}).json()["job_id"]
    house.wait_for(job_id, lambda job: job.has_ended)
    export_id = _export(house.http, job_id)["export_id"]
    folder = house.root.export(export_id)
    folder.mkdir(parents=True)
    (folder / "model.zip").write_bytes(b"PK")
    info = house.http.get(f"/api/export/{job_id}/download").json()
    assert datetime.fromisoformat(info["expires_at"]).timestamp() == pytest.approx(time.time() + 3600, abs=30)
    assert house.http.get(info["download_url"]).status_code == 200
    (listed,) = house.http.get("/api/export/list").json()["exports"]
    plain, _, query = listed["download_url"].partition("?")
    expires, signature = parse_qs(query)["expires"][0], parse_qs(query)["signature"][0]
    assert house.http.get(listed["download_url"]).status_code == 200
    for changed in (
        "", f"?expires={expires}", f"?signature={signature}", f"?expires={int(expires) + 1}&signature={signature}",
        f"?expires={expires}&signature={'0' * 64}", f"?expires={expires}&signature=%C3%A9",
        f"?expires={expires}&signature={signature[:-1]}",
    ):  # fmt: skip
        answer = house.http.get(plain + changed)
        assert (answer.status_code, answer.json()["code"]) == (404, "export_not_found"), changed
    other = plain.replace(export_id, _export(house.http, job_id)["export_id"])
    assert house.http.get(f"{other}?{query}").status_code == 404
    monkeypatch.setattr("service.links.time.time", lambda: int(expires) + 1.0)
    answer = house.http.get(info["download_url"])
    assert (answer.status_code, answer.json()["code"]) == (410, "link_expired")
    fresh = house.http.get(f"/api/export/{job_id}/download").json()["download_url"]
    assert "signature=" in fresh


def test_links_outlive_a_restart_and_their_key_is_its_owners_alone(tmp_path) -> None:
    settings, root = Settings(export_link_h=1.0), DataRoot(tmp_path)
    link = links.Links.open(settings, root).make("/api", "job_e")
    expires, signature = parse_qs(urlsplit(link.url).query).values()
    links.Links.open(settings, root).check("job_e", int(expires[0]), signature[0])
    assert root.link_key.stat().st_mode & 0o777 == 0o600
    root.link_key.unlink()
    with pytest.raises(UnknownExport):
        links.Links.open(settings, root).check("job_e", int(expires[0]), signature[0])


def test_links_without_an_end_need_no_key(tmp_path) -> None:
    settings, root = Settings(), DataRoot(tmp_path)
    opened = links.Links.open(settings, root)
    assert opened.make("/api", "job_e") == links.Link(url="/api/export/download_file/job_e", expires_at=None)
    opened.check("job_e", None, None)
    assert not root.link_key.exists()


def _link(http, job_id: str) -> str:
    _export(http, job_id)
    return http.get(f"/api/export/{job_id}/download").json()["download_url"]
