"""The terminal's commands as a person types them, against the real programs."""

import os
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture
def terminal(house, tmp_path):
    """Runs `training-api …` in an empty folder and waits for its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TRAINING_URL": house.settings.address}
        command = [sys.executable, "-m", "service.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=tmp_path)

    return run


@pytest.fixture(scope="module")
def options(config) -> list[str]:
    """The shared configuration as options of `submit`."""
    named = {"model_name": "--model", "train_data_path": "--train", "val_data_path": "--val"}
    own = [part for field, option in named.items() for part in (option, config[field])]
    rest = {field: value for field, value in config.items() if field not in named}
    return own + [part for field, value in rest.items() for part in ("--set", f"{field}={str(value).lower()}")]


def test_a_training_is_submitted_watched_listed_and_exported(terminal, options, tmp_path) -> None:
    submitted = terminal("submit", *options, "--name", "typed", "--watch")
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    assert job_id.startswith("job_")
    assert "step 12" in submitted.stderr
    assert "checkpoint saved" in submitted.stderr

    watched = terminal("watch", job_id)
    assert (watched.returncode, watched.stdout.splitlines()[-1]) == (0, "completed.")

    row = next(line for line in terminal("jobs").stdout.splitlines() if job_id in line)
    assert "typed" in row
    assert "completed" in row

    exported = terminal("export", job_id[-12:], "--format", "lora_adapter", "-o", "adapter.zip")
    assert (exported.returncode, exported.stdout) == (0, "adapter.zip\n"), exported.stderr
    assert any(name.endswith("adapter_config.json") for name in zipfile.ZipFile(tmp_path / "adapter.zip").namelist())


def test_the_log_of_a_job_is_printed(terminal, house, split) -> None:
    job = house.run({"kind": "validate", "data_path": split["train_path"]})
    printed = terminal("logs", job["job_id"])
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == (house.root / "jobs" / job["job_id"] / "attempt-1" / "output.log").read_text()


def test_a_cancelled_training_ends_its_watcher_with_3(terminal, options) -> None:
    job_id = terminal("submit", *options, "--set", "max_steps=2000", "--set", "num_epochs=100").stdout.strip()
    assert terminal("cancel", job_id).stdout == f"{job_id} is cancelled\n"
    watched = terminal("watch", job_id)
    assert watched.returncode == 3, watched.stderr


def test_a_health_check_tells_by_its_exit_status(terminal) -> None:
    assert terminal("health").stdout == "healthy\n"
