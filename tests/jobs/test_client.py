"""The client against a real socket: bodies, progress, and errors a person can read."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobs.client import Client
from jobs.errors import RemoteProblem, Unreachable


class _Service(BaseHTTPRequestHandler):
    """Answers like the service: a job that ends at its third look, a problem, a file, an echo of uploads."""

    looks = 0

    def do_GET(self) -> None:
        if self.path == "/api/jobs/j1":
            type(self).looks += 1
            self._answer(200, {"status": "completed" if self.looks >= 3 else "running"})
        elif self.path == "/file":
            self._answer(200, b"x" * 300_000)
        elif self.path == "/plain":
            self._answer(502, b"bad gateway")
        else:
            self._answer(404, {"message": "There is no job with that id.", "code": "job_not_found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._answer(200, {"bytes": len(body), "auth": self.headers.get("authorization")})

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, status: int, body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def address() -> Iterator[str]:
    _Service.looks = 0
    server = HTTPServer(("127.0.0.1", 0), _Service)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_job_is_followed_until_it_has_ended(address) -> None:
    with Client(address) as client:
        assert [job["status"] for job in client.follow("j1")] == ["running", "running", "completed"]


def test_a_problem_becomes_an_error_with_its_status_code_and_sentence(address) -> None:
    with Client(address) as client, pytest.raises(RemoteProblem, match="no job with that id") as caught:
        client.get("/api/jobs/nope")
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")


def test_an_error_that_is_no_problem_document_keeps_its_text(address) -> None:
    with Client(address) as client, pytest.raises(RemoteProblem, match="bad gateway"):
        client.get("/plain")


def test_nobody_there_is_said_with_the_address() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        client.get("/health")


def test_an_upload_shows_its_progress_and_carries_the_token(address, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"z" * 200_000)
    seen: list[tuple[int, int]] = []
    with Client(address, token="secret") as client:
        answer = client.upload(archive, lambda done, total: seen.append((done, total)))
    assert answer["auth"] == "Bearer secret"
    assert answer["bytes"] > 200_000
    assert seen[-1] == (200_000, 200_000)
    assert len(seen) > 2


def test_a_download_lands_in_the_file_with_its_progress(address, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Client(address) as client:
        client.download("/file", tmp_path / "f", lambda done, total: seen.append((done, total)))
    assert (tmp_path / "f").stat().st_size == 300_000
    assert seen[-1] == (300_000, 300_000)
    with Client(address) as client, pytest.raises(RemoteProblem):
        client.download("/missing", tmp_path / "g")


def test_a_download_from_nobody_is_said_with_the_address(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        client.download("/file", tmp_path / "f")
    assert not (tmp_path / "f").exists()
