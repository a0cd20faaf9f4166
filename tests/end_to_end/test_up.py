"""`training-api up` as a person uses it: it comes up, it mends itself, Ctrl-C stops all of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.programs import free_port, health


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "service.cli", "up", "--data-root", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def _until_healthy(address: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while health(address) != "healthy":
        assert time.monotonic() < deadline, f"{address} is not healthy after {within_s} s"
        time.sleep(0.1)


def test_a_dead_runner_comes_back_and_ctrl_c_leaves_nothing(up, tmp_path, processes_of) -> None:
    process, address = up
    _until_healthy(address, 60)
    os.kill(
        next(pid for pid, command in processes_of(tmp_path).items() if "gpu_runner.worker" in command), signal.SIGKILL
    )
    time.sleep(1)
    _until_healthy(address, 60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not processes_of(tmp_path)


def test_an_open_bind_without_a_token_is_refused_with_the_settings_name(tmp_path) -> None:
    command = [sys.executable, "-m", "service.cli", "up", "--data-root", str(tmp_path), "--host", "0.0.0.0"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert "TRAINING_TOKEN" in answer.stdout + answer.stderr


def test_a_second_one_on_the_same_data_refuses_and_leaves_the_first_alone(house) -> None:
    redis = (house.root / "redis" / "pid").read_text()
    command = [sys.executable, "-m", "service.cli", "up", "--data-root", str(house.root)]
    answer = subprocess.run(
        [*command, "--port", str(free_port("127.0.0.1"))], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 2
    assert str(house.root) in answer.stderr
    assert (house.root / "redis" / "pid").read_text() == redis
    assert health(house.settings.address) == "healthy"


def test_a_taken_port_is_refused_before_anything_is_started(house, tmp_path, processes_of) -> None:
    command = [sys.executable, "-m", "service.cli", "up", "--data-root", str(tmp_path)]
    answer = subprocess.run([*command, "--port", str(house.settings.port)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert "--port" in answer.stderr
    assert not processes_of(tmp_path)
