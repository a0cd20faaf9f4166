"""Commands whose addresses are new: presets and a log that grows, against a service that has just those."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from jobs import logs
from service import cli, remote

LOG = "loss 0.5 ½\nloss 0.4\nthe end\n".encode()


class _Service(BaseHTTPRequestHandler):
    """One job, whose log grows with every look until the job has ended; one preset; remembers what was submitted."""

    submitted: list[Any]
    looks: int
    attempts: list[bytes]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/api/train/presets":
            self._answer({"presets": [{"name": "small-gpu", "config": {"use_qlora": True, "batch_size": 1}}]})
        elif path.endswith("/log"):
            self._log(int(query.removeprefix("offset=")))
        elif path == "/api/jobs":
            self._answer({"jobs": [{"job_id": "j1"}]})
        else:
            type(self).looks += 1
            is_over = self.looks * 7 >= len(b"".join(self.attempts))
            self._answer({"job_id": "j1", "status": "completed" if is_over else "running", "notes": ["mind the gap"]})

    def do_POST(self) -> None:
        self.submitted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._answer({"job_id": "j1"})

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _log(self, offset: int) -> None:
        """Of the attempt under way, as the service does it."""
        attempt, written = 1, self.looks * 7
        while attempt < len(self.attempts) and written > len(self.attempts[attempt - 1]):
            written -= len(self.attempts[attempt - 1])
            attempt += 1
        text = self.attempts[attempt - 1][:written]
        self._answer(text[offset:], {"x-log-attempt": str(attempt), "x-log-offset": str(len(text))})

    def _answer(self, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def service(monkeypatch) -> Iterator[Any]:
    handler = type("Handler", (_Service,), {"submitted": [], "looks": 0, "attempts": [LOG]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("TRAINING_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(logs, "set_up", lambda level: None)
    monkeypatch.setattr(remote, "LOOK_EVERY_S", 0.01)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_log_is_followed_to_the_jobs_end(service, capsys) -> None:
    assert cli.main(["logs", "-f", "j1"]) == 0
    assert capsys.readouterr().out == LOG.decode()


def test_a_log_that_another_attempt_begins_anew_is_followed_into_it(service, capsys) -> None:
    service.attempts = [b"it began\nand then fell", b"it began anew\nand it held until the end\n"]
    assert cli.main(["logs", "-f", "j1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("it began anew\nand it held until the end\n")
    assert "attempt 2 of j1" in printed.err


def test_a_log_is_printed_as_far_as_it_is(service, capsys) -> None:
    service.looks = 1
    assert cli.main(["logs", "j1"]) == 0
    printed = capsys.readouterr().out
    assert printed
    assert LOG.decode().startswith(printed)


def test_options_win_over_the_preset_they_begin_with(service, capsys) -> None:
    assert cli.main(["submit", "--preset", "small-gpu", "--model", "m", "--set", "batch_size=2"]) == 0
    assert service.submitted == [
        {"kind": "finetune", "config": {"use_qlora": True, "batch_size": 2, "model_name": "m"}}
    ]


def test_an_unknown_preset_is_refused_with_those_there_are(service, capsys) -> None:
    assert cli.main(["submit", "--preset", "huge"]) == 1
    assert "There is no preset 'huge'; there are small-gpu." in capsys.readouterr().err
    assert service.submitted == []


def test_warnings_about_a_spec_go_to_stderr(service, capsys) -> None:
    cli.main(["submit", "--model", "m"])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("j1\n", "warning: mind the gap\n")
