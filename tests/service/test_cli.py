"""The command line: help, versions, and settings that cannot work."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from jobs.settings import described


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


@pytest.mark.parametrize("command", ["up", "demo", "serve", "runner"])
def test_every_command_explains_itself_and_its_settings(command) -> None:
    answer = _run(command, "--help")
    assert answer.returncode == 0
    assert all(name in answer.stdout for name, _, _ in described())


@pytest.mark.parametrize(
    "command",
    [
        "submit", "prepare", "watch", "jobs", "cancel", "logs", "export", "health",
        *("webhooks", *(f"webhooks {verb}" for verb in ("add", "ping", "rotate", "replay", "log", "remove"))),
    ],
)  # fmt: skip
def test_every_command_that_talks_to_a_service_shows_an_example(command) -> None:
    answer = _run(*command.split(), "--help")
    assert answer.returncode == 0
    assert f"example:\n  training-api {command}" in answer.stdout
    assert "--url" in answer.stdout
    assert "TRAINING_TOKEN" in answer.stdout


def test_version_is_the_installed_one() -> None:
    assert _run("version").stdout.strip() == version("training-api")


def test_a_setting_of_the_wrong_form_is_named_with_exit_status_2() -> None:
    answer = _run("up", TRAINING_CPU_SLOTS="many")
    assert answer.returncode == 2
    assert "TRAINING_CPU_SLOTS" in answer.stderr
