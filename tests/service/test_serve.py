"""The program `python -m service.serve` as a process: what it refuses, how it starts, how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jobs import redis_server
from jobs.settings import Settings

_WITHIN_S = 20
_SERVE = ("-m", "service.serve")
_FAULTY = """
import sys
from service import hub, serve
def publish(*_): raise KeyError("a fault of ours")
hub.Hub.publish = publish
sys.exit(serve.main([]))
"""


class Service:
    """One process on a port of its own."""

    def __init__(self, folder, *arguments: str, program: tuple[str, ...] = _SERVE, **environment: str) -> None:
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        given = {"TRAINING_DATA_ROOT": str(folder), "TRAINING_PORT": str(self.port), "PATH": os.environ["PATH"]}
        given |= {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
        command = [sys.executable, *program, *arguments]
        self.process = subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _WITHIN_S
        while True:
            try:
                httpx.get(f"{self.address}/health/live", trust_env=False)
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(_WITHIN_S)
        self.process.stderr.close()
        return status

    def refused(self) -> str:
        """What it says when it exits with status 2."""
        _, said = self.process.communicate(timeout=_WITHIN_S)
        assert self.process.returncode == 2, said
        return said


@pytest.fixture
def start(tmp_path) -> Iterator:
    services: list[Service] = []

    def started(*arguments: str, **environment: Any) -> Service:
        services.append(Service(tmp_path, *arguments, **environment))
        return services[-1]

    yield started
    for service in services:
        service.end(signal.SIGKILL)
    redis_server.stop(Settings(data_root=str(tmp_path)))


def test_an_open_address_without_a_token_is_refused_before_binding(start, tmp_path) -> None:
    service = start(TRAINING_HOST="0.0.0.0")
    said = service.refused()
    assert "TRAINING_HOST" in said
    assert "TRAINING_TOKEN" in said
    assert "Traceback" not in said
    assert not (tmp_path / "training.db").exists()


def test_several_workers_and_wrong_settings_are_refused_with_a_sentence(start) -> None:
    assert "one process" in start("--workers", "4").refused()
    assert "TRAINING_PORT" in start(TRAINING_PORT="many").refused()
    assert "TRAINING_TOKEN" in start(TRAINING_TOKEN="changeme").refused()


def test_a_second_service_for_the_same_data_is_refused(start) -> None:
    first = start()
    first.wait_until_it_answers()
    said = start().refused()
    assert str(first.process.pid) in said
    assert "TRAINING_DATA_ROOT" in said
    assert httpx.get(f"{first.address}/health/live", trust_env=False).status_code == 200


def test_two_services_never_write_one_database(start, tmp_path) -> None:
    first = start()
    first.wait_until_it_answers()
    said = start(TRAINING_DATA_ROOT=str(tmp_path / "other"), TRAINING_DATABASE=str(tmp_path / "training.db")).refused()
    assert str(first.process.pid) in said
    assert "TRAINING_DATABASE" in said


def test_a_port_in_use_ends_the_program_with_a_status(start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = start(TRAINING_PORT=str(taken.getsockname()[1]))
        assert service.process.wait(_WITHIN_S) not in (0, 2)


def test_what_was_accepted_survives_a_kill(start, tmp_path) -> None:
    (tmp_path / "datasets" / "made").mkdir(parents=True)
    first = start()
    first.wait_until_it_answers()
    spec = {"kind": "validate", "data_path": "datasets/made"}
    job_id = httpx.post(f"{first.address}/api/jobs", json=spec, trust_env=False).json()["job_id"]
    first.end(signal.SIGKILL)
    second = start()
    second.wait_until_it_answers()
    job = httpx.get(f"{second.address}/api/jobs/{job_id}", trust_env=False).json()
    assert (job["status"], job["spec"]["data_path"]) == ("pending", "datasets/made")


def test_a_service_whose_memory_is_not_what_is_on_the_disk_ends_and_the_next_one_knows_all(start, tmp_path) -> None:
    (tmp_path / "datasets" / "made").mkdir(parents=True)
    first = start(program=("-c", _FAULTY))
    first.wait_until_it_answers()
    spec = {"kind": "validate", "data_path": "datasets/made"}
    answer = httpx.post(f"{first.address}/api/jobs", json=spec, trust_env=False)
    _, said = first.process.communicate(timeout=_WITHIN_S)
    assert first.process.returncode == 1, said
    assert "Traceback" in said
    assert "part=ledger" in said
    assert answer.is_success, "it is on the disk"
    second = start()
    second.wait_until_it_answers()
    job = httpx.get(f"{second.address}/api/jobs/{answer.json()['job_id']}", trust_env=False).json()
    assert job["status"] == "pending"


def test_ctrl_c_ends_it_with_status_0_and_without_a_word(start) -> None:
    service = start()
    service.wait_until_it_answers()
    service.process.send_signal(signal.SIGINT)
    _, said = service.process.communicate(timeout=_WITHIN_S)
    assert service.process.returncode == 0, said
    assert "Traceback" not in said


def test_sigterm_ends_it_quickly_with_an_open_stream(start) -> None:
    service = start()
    service.wait_until_it_answers()
    with httpx.stream("GET", f"{service.address}/api/events", trust_env=False, timeout=_WITHIN_S) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry:")
        began = time.monotonic()
        service.end()
        assert time.monotonic() - began < 4  # uvicorn would wait five seconds for the stream
        assert not [line for line in lines if line and not line.startswith(":")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_database_may_lie_on_another_disk_than_the_data(start, tmp_path) -> None:
    file = tmp_path / "local" / "training.db"
    service = start(TRAINING_DATABASE=str(file))
    service.wait_until_it_answers()
    assert httpx.get(f"{service.address}/health", trust_env=False).json()["database"] is True
    service.end()
    assert file.stat().st_size > 0
    assert not (tmp_path / "training.db").exists()


def test_a_database_that_did_not_move_with_its_setting_is_refused(start, tmp_path) -> None:
    before = start()
    before.wait_until_it_answers()
    before.end()
    said = start(TRAINING_DATABASE=str(tmp_path / "local" / "training.db")).refused()
    assert "TRAINING_DATABASE" in said
    assert str(tmp_path / "training.db") in said
    assert not (tmp_path / "local").exists()
    (tmp_path / "local").mkdir()
    (tmp_path / "training.db").rename(tmp_path / "local" / "training.db")
    start(TRAINING_DATABASE=str(tmp_path / "local" / "training.db")).wait_until_it_answers()


def test_an_empty_database_beside_jobs_it_does_not_know_is_warned_of(start, tmp_path) -> None:
    file = tmp_path / "local" / "training.db"
    before = start(TRAINING_DATABASE=str(file))
    assert "database.empty" not in _said_until_it_answers(before), "there are no jobs yet"
    (tmp_path / "jobs" / "job_1").mkdir(parents=True)
    assert "database.empty" not in _said_until_it_answers(start(TRAINING_DATABASE=str(file)))
    said = _said_until_it_answers(start())
    assert "database.empty" in said
    assert str(tmp_path / "training.db") in said


def _said_until_it_answers(service: Service) -> str:
    service.wait_until_it_answers()
    service.process.terminate()
    return service.process.communicate(timeout=_WITHIN_S)[1]
