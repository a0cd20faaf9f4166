"""The pages and the schema: all of it from this host."""

import re
import socket
from urllib.parse import urljoin

import pytest

ROUTES = {
    "GET /api/data/image", "GET /api/train/presets", "GET /api/models", "GET /api/schemas/{kind}",
    "GET /api/data/datasets", "GET /api/data/datasets/{name}", "GET /api/data/rows", "POST /api/data/prepare",
    "POST /api/session", "DELETE /api/session",
    "POST /api/data/upload", "POST /api/data/convert", "POST /api/data/validate", "POST /api/data/split",
    "GET /api/data/download_validation_report/{report_id}", "POST /api/train/start", "GET /api/train/{job_id}/status",
    "POST /api/train/{job_id}/cancel", "POST /api/train/preview",
    "POST /api/train/plan", "GET /api/train/plan/{job_id}", "GET /api/train/jobs",
    "GET /api/experiments",
    "GET /api/experiments/{experiment_id}", "GET /api/experiments/{experiment_id}/metrics",
    "POST /api/experiments/compare", "DELETE /api/experiments/{experiment_id}", "POST /api/export/{job_id}",
    "GET /api/export/{job_id}/download", "GET /api/export/download_file/{job_id}", "GET /api/export/list",
    "DELETE /api/export/{job_id}", "POST /api/jobs", "GET /api/jobs", "GET /api/jobs/{job_id}",
    "GET /api/jobs/{job_id}/events", "GET /api/jobs/{job_id}/log", "POST /api/jobs/{job_id}/cancel",
    "POST /api/jobs/{job_id}/pause", "POST /api/jobs/{job_id}/resume", "DELETE /api/jobs/{job_id}",
    "GET /api/train/queue", "POST /api/train/{job_id}/pause", "POST /api/train/{job_id}/resume",
    "GET /api/runners", "GET /api/events", "GET /", "GET /health", "GET /health/ready", "GET /health/live",
    "POST /api/webhooks", "GET /api/webhooks", "GET /api/webhooks/{webhook_id}", "PATCH /api/webhooks/{webhook_id}",
    "DELETE /api/webhooks/{webhook_id}", "POST /api/webhooks/{webhook_id}/rotate",
    "POST /api/webhooks/{webhook_id}/ping",
    "GET /api/webhooks/{webhook_id}/deliveries", "POST /api/webhooks/{webhook_id}/replay",
    "POST /api/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
    "GET /api/health", "GET /api/health/ready", "GET /api/health/live",
}  # fmt: skip


def test_the_schema_names_every_route_once(http) -> None:
    schema = http.get("/openapi.json").json()
    found = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert found == ROUTES
    operations = [each["operationId"] for methods in schema["paths"].values() for each in methods.values()]
    assert len(operations) == len(set(operations))


def test_the_schema_says_what_is_sent_and_answered(http) -> None:
    schema = http.get("/openapi.json").json()
    start = schema["paths"]["/api/train/start"]["post"]
    assert start["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("FinetuneSpec")
    assert "Problem" in str(start["responses"]["422"])
    assert "400" not in schema["paths"]["/api/experiments"]["get"]["responses"]
    rank = schema["components"]["schemas"]["TrainingConfig"]["properties"]["lora_rank"]
    assert (rank["minimum"], rank["maximum"], rank["default"]) == (1, 256, 8)
    upload = schema["paths"]["/api/data/upload"]["post"]
    assert "multipart/form-data" in upload["requestBody"]["content"]


def test_the_api_pages_and_all_they_load_come_from_this_host(http) -> None:
    for page in ("/docs", "/redoc"):
        answer = http.get(page)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert "worker-src 'self' blob:" in answer.headers["content-security-policy"]
        assert "<script>" not in answer.text
        addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert len(addresses) >= 3
        for address in addresses:
            if address != "data:,":
                assert address.startswith("/")
                assert http.get(address).status_code == 200, address


def test_redoc_asks_no_foreign_host_for_its_logo(http) -> None:
    assert "cdn.redoc.ly" not in http.get("/docs/redoc-bundle.js").text
    assert http.get("/docs/assets/logo-mini.svg").status_code == 200


@pytest.mark.parametrize("page", ["/ui", "/ui/"])
def test_the_page_has_all_it_loads(http, page) -> None:
    text = http.get(page).text
    wanted = [urljoin(page, address) for address in re.findall(r'(?:src|href)="([^"]+)"', text) if address != "data:,"]
    assert len(wanted) >= 4
    seen: set[str] = set()
    while wanted:
        address = wanted.pop()
        answer = http.get(address)
        assert answer.status_code == 200, address
        seen.add(address)
        if address.endswith(".js"):
            imported = {urljoin(address, name) for name in re.findall(r'from "([^"]+)"', answer.text)}
            wanted += imported - seen
    assert {"/ui/style.css", "/ui/app.js", "/ui/api.js", "/ui/live.js"} <= seen


def test_the_pages_files_are_of_a_type_a_browser_runs_and_asked_for_anew_after_an_upgrade(http) -> None:
    types = {"/ui/": "text/html", "/ui/app.js": "text/javascript", "/ui/live.js": "text/javascript",
             "/ui/style.css": "text/css"}  # fmt: skip
    for path, media_type in types.items():
        headers = http.get(path).headers
        assert headers["content-type"].startswith(media_type), path
        assert headers["cache-control"] == "no-cache", path
        assert headers["etag"], path


def test_the_page_runs_no_inline_style_or_script(http) -> None:
    policy = http.get("/ui/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy
    assert "style" not in re.sub(r'<link rel="stylesheet"[^>]*>', "", http.get("/ui/").text)


@pytest.mark.parametrize("path", ["/ui/vendor/absent/x.js", "/ui/absent.js", "/ui/vendor", "/ui/absent/"])
def test_a_file_of_the_page_that_is_missing_is_said_in_the_shape_of_every_error(http, path) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize("mount", ["/ui/", "/docs/assets/", "/api/jobs/", "/"])
@pytest.mark.parametrize("name", ["%00", "a%00.js", "%0a", "%1b", "%7f", "a" * 300, "a/" * 2000, "%ff", "%ed%a0%80"])
def test_no_name_is_too_strange_to_be_absent(house, mount, name) -> None:
    assert b" 404 " in _first_line(house, mount + name), name


def test_static_files_cannot_be_left(house) -> None:
    for path in (
        "/ui/../pyproject.toml",
        "/ui/..%2fpyproject.toml",
        "/ui/%2e%2e/pyproject.toml",
        "/docs/assets/../../x",
    ):
        assert b" 404 " in _first_line(house, path), path


def _first_line(house, path: str) -> bytes:
    """The status line of the answer to a path that is sent as it is."""
    host, port = house.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).splitlines()[0]


def test_scripts_travel_compressed_and_answers_of_the_api_do_not(http) -> None:
    wanted = {"accept-encoding": "gzip"}
    script = http.get("/ui/app.js", headers=wanted)
    assert script.headers["content-encoding"] == "gzip"
    assert script.headers["vary"] == "Accept-Encoding"
    assert int(script.headers["content-length"]) < len(script.content)
    assert "content-encoding" not in http.get("/api/jobs", headers=wanted).headers
    assert "content-encoding" not in http.get("/api/training/train/presets", headers=wanted).headers
