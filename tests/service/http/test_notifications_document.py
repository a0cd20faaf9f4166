"""The receiver of docs/notifications.md runs as it stands, registered by the command that stands there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jobs.client import Client
from service import cli, remote_webhooks
from service.programs import free_port

DOCUMENT = Path(__file__).parents[3] / "docs" / "notifications.md"

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


@pytest.fixture
def told(tmp_path, house):
    settings = msgspec.structs.replace(house.settings, data_root=str(tmp_path), outgoing_networks=("127.0.0.0/8",))
    with type(house)(settings) as running:
        yield running


def test_the_receiver_is_ten_lines_and_hears_of_a_job_that_ends(told) -> None:
    (receiver,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (register,) = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len([line for line in receiver.splitlines() if line and not re.match("import|from", line)]) <= 10
    port = str(free_port("127.0.0.1"))
    command = register.replace("127.0.0.1:8000", told.address).replace("9000", port).replace("curl ", "curl -sS ")
    registered = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, timeout=60, check=True)
    webhook = json.loads(registered.stdout)

    environment = os.environ | {"WEBHOOK_SECRET": webhook["secret"]}
    script = (
        receiver.replace("9000", port)
        .replace("HTTPServer((", "server = HTTPServer((")
        .replace(").serve_forever()", ")\nprint('listens', flush=True)\nserver.serve_forever()")
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "listens\n"
            made = told.root.datasets / "made"
            made.mkdir(parents=True)
            (made / "train.jsonl").write_text("{}\n")
            config = {"model_name": "demo-llava", "train_data_path": "datasets/made/train.jsonl"}
            job_id = told.http.post("/api/train/start", json={"config": config}).json()["job_id"]
            assert running.stdout.readline() == f"job.completed {job_id}\n"
        finally:
            running.kill()


def test_it_shows_every_command_and_verb_and_each_can_be_typed_as_it_stands(monkeypatch) -> None:
    typed: list[str] = []
    monkeypatch.setattr(cli, "_speak", lambda chosen: typed.append(chosen.name_of_command) or 0)
    text = DOCUMENT.read_text()
    for line in re.findall(r"^training-api (.*)$", text, re.MULTILINE):
        assert cli.main(shlex.split(line, comments=True)) == 0
    assert set(typed) == set(remote_webhooks.COMMANDS)
    for verb in re.findall(r"`(\w+)`", re.findall(r"^Both Python clients.*$", text, re.MULTILINE)[0]):
        assert callable(getattr(Client, verb))


def test_it_names_every_route_and_setting() -> None:
    text = DOCUMENT.read_text()
    for word in ("/rotate", "/ping", "/deliveries", "/redeliver", "/replay", "TRAINING_OUTGOING_NETWORKS"):
        assert word in text
