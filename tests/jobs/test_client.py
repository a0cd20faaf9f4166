"""Both clients against real sockets: bodies, progress, broken connections, and errors a person can read."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from jobs import backoff, calls
from jobs.async_client import AsyncClient
from jobs.client import Client
from jobs.errors import NotCompleted, RemoteProblem, Unreachable

FILE = bytes(range(256)) * 4000
NOBODY = "http://127.0.0.1:9"


class _Service(BaseHTTPRequestHandler):
    """Answers like the service: jobs, a log, a problem, an echo of uploads, a file over connections that break."""

    protocol_version = "HTTP/1.1"
    breaks: list[int]  # after how many bytes of the answer, one by one; then no more
    ranges: list[str | None]
    etag: str

    def do_GET(self) -> None:
        if self.path == "/file":
            self._file()
        elif self.path.startswith("/api/jobs?"):
            self._answer(200, {"jobs": [{"job_id": "j1", "asked": self.path}], "before": None})
        elif self.path.startswith("/api/jobs/j1/log?offset="):
            offset, text = int(self.path.rpartition("=")[2]), "loss ½\n".encode()
            piece = text[offset : offset + 6]
            self._answer(200, piece, {"x-log-attempt": "2", "x-log-offset": str(offset + len(piece))})
        elif self.path == "/plain":
            self._answer(502, b"bad gateway")
        elif self.path == "/nonsense":
            self._answer(200, b"<html>")
        else:
            self._answer(404, {"message": "There is no job with that id.", "code": "job_not_found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/api/jobs":
            self._answer(202, {"job_id": json.loads(body)["kind"] + "-1"})
        elif self.path.startswith("/api/jobs/"):
            self._answer(200, {"did": self.path})
        else:
            form = {"type": self.headers["content-type"], "body": body.decode("latin-1")}
            self._answer(200, form | {"auth": self.headers.get("authorization")})

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self) -> None:
        asked = self.headers.get("range")
        self.ranges.append(asked)
        is_same = self.headers.get("if-range") == self.etag
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and is_same else 0
        self.send_response(206 if begin else 200)
        self.send_header("etag", self.etag)
        self.send_header("content-length", str(len(FILE) - begin))
        if begin:
            self.send_header("content-range", f"bytes {begin}-{len(FILE) - 1}/{len(FILE)}")
        self.end_headers()
        if self.breaks:
            self.wfile.write(FILE[begin : begin + self.breaks.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(FILE[begin:])


@pytest.fixture
def service(monkeypatch) -> Iterator[Any]:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.01)
    handler = type("Handler", (_Service,), {"breaks": [], "ranges": [], "etag": f'"{_sum(FILE)}"'})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- requests and their answers


def test_both_clients_have_the_same_verbs_with_the_same_arguments() -> None:
    assert _verbs(Client) == _verbs(AsyncClient)
    assert {"submit", "webhooks", "deliveries", "close"} <= _verbs(Client).keys()


def _verbs(kind: type) -> dict[str, str]:
    """What each is called with."""
    return {
        name: str(inspect.signature(verb).replace(return_annotation=inspect.Signature.empty))
        for name, verb in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_verb_asks_for_what_it_says(service, client_of) -> None:
    client = client_of(service.address)
    assert client.submit({"kind": "validate"}) == "validate-1"
    assert [client.cancel("j1"), client.pause("j1"), client.resume("j1")] == [
        {"did": f"/api/jobs/j1/{verb}"} for verb in ("cancel", "pause", "resume")
    ]
    assert client.jobs("export", limit=3)[0]["asked"] == "/api/jobs?kind=export&limit=3"
    assert client.jobs(status="failed", before="j9")[0]["asked"] == "/api/jobs?status=failed&limit=100&before=j9"


def test_a_log_is_read_bit_by_bit_without_tearing_a_character(service, client_of) -> None:
    client = client_of(service.address)
    assert client.log("j1") == ("loss ", 5, 2)
    assert client.log("j1", 5) == ("½\n", 8, 2)
    assert client.log("j1", 8) == ("", 8, 2)


def test_a_problem_becomes_an_error_with_its_status_code_and_sentence(service, client_of) -> None:
    with pytest.raises(RemoteProblem, match="no job with that id") as caught:
        client_of(service.address).job("nope")
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")


def test_an_error_that_is_no_problem_document_keeps_its_text(service, client_of) -> None:
    with pytest.raises(RemoteProblem, match="bad gateway"):
        client_of(service.address).get("/plain")


def test_an_answer_of_something_else_is_said_to_be_none_of_ours(service, client_of) -> None:
    with pytest.raises(RemoteProblem, match="/nonsense answers something else"):
        client_of(service.address).get("/nonsense")


def test_nobody_there_is_said_with_the_address_and_at_once(client_of, tmp_path: Path) -> None:
    client = client_of(NOBODY)
    for ask in (
        lambda: client.get("/health"),
        lambda: client.wait("j1"),
        lambda: list(client.events("j1")),
        lambda: client.download("/file", tmp_path / "f"),
    ):
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            ask()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "words"), [("failed", "failed: no memory"), ("cancelled", "was cancelled")])
def test_a_job_that_did_not_complete_says_how_it_ended(status, words) -> None:
    job = {"job_id": "j1", "kind": "finetune", "status": status}
    with pytest.raises(NotCompleted, match=words) as caught:
        calls.completed(job | ({"failure_detail": "no memory"} if status == "failed" else {}))
    assert caught.value.job["status"] == status


# -- files


def test_an_upload_shows_its_progress_and_carries_the_token(service, client_of, tmp_path: Path) -> None:
    archive = tmp_path / 'a"b.zip'
    archive.write_bytes(b"z" * 600_000)
    seen: list[tuple[int, int]] = []
    answer = client_of(service.address, "secret").upload(archive, lambda done, total: seen.append((done, total)))
    assert answer["auth"] == "Bearer secret"
    boundary = answer["type"].rpartition("=")[2]
    _, part, end = answer["body"].split(f"--{boundary}")
    assert 'name="file"; filename="a%22b.zip"' in part
    assert part.endswith("\r\n\r\n" + "z" * 600_000 + "\r\n")
    assert end == "--\r\n"
    assert seen[-1] == (600_000, 600_000)
    assert len({done for done, _ in seen}) > 2


def test_a_download_lands_in_the_file_with_its_progress(service, client_of, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    client_of(service.address).download("/file", tmp_path / "f", lambda done, total: seen.append((done, total)))
    assert (tmp_path / "f").read_bytes() == FILE
    assert seen[-1] == (len(FILE), len(FILE))
    assert service.ranges == [None]


def test_a_download_goes_on_where_its_connection_broke(service, client_of, tmp_path: Path) -> None:
    service.breaks += [300_000, 0, 500_001]
    seen: list[int] = []
    client_of(service.address).download("/file", tmp_path / "f", lambda done, _: seen.append(done))
    assert (tmp_path / "f").read_bytes() == FILE
    assert seen == sorted(seen), "nothing was fetched twice"
    assert len(service.ranges) == 4
    assert all(service.ranges[1:])


def test_a_download_begins_anew_when_the_file_is_another_one_by_now(service, client_of, tmp_path: Path) -> None:
    service.breaks += [300_000]
    service.etag = '"yesterday"'

    def change(_done: int, _total: int) -> None:
        service.etag = '"today"'

    client_of(service.address).download("/file", tmp_path / "f", change)
    assert (tmp_path / "f").read_bytes() == FILE
    assert service.ranges[1] is not None


@pytest.mark.parametrize("told", ["by the caller", "by the service"])
def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(service, client_of, tmp_path, told) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"the old one")
    if told == "by the service":
        service.etag = f'"{_sum(b"else")}"'
    with pytest.raises(RemoteProblem, match="checksum"):
        client_of(service.address).download("/file", target, sha256=_sum(b"else") if "caller" in told else None)
    assert target.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_that_is_refused_leaves_nothing(service, client_of, tmp_path: Path) -> None:
    with pytest.raises(RemoteProblem):
        client_of(service.address).download("/missing", tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_a_download_gives_up_when_its_patience_ends(service, client_of, tmp_path: Path, monkeypatch) -> None:
    service.breaks += [1000] + [0] * 10_000
    retries: list[str] = []
    client = client_of(service.address, patience_s=0.3, on_retry=lambda error, _: retries.append(error.message))
    with pytest.raises(Unreachable):
        client.download("/file", tmp_path / "f")
    assert retries
    assert not list(tmp_path.iterdir())
