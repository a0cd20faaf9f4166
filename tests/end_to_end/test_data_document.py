"""The commands of docs/data.md run as they stand, one after the other, against a running service."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_runner.sam2 import sample

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
ADDRESS = "http://127.0.0.1:8000"

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")


def test_the_commands_upload_prepare_divide_repair_and_grow(house, tmp_path) -> None:
    for name, videos in (("export", 3), ("more", 4)):
        sample.write_sample(tmp_path / f"{name}.zip", videos=videos, frames=20)
    more = house.client.upload(tmp_path / "more.zip")["file_path"]
    prepare, divide, grow = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    upload, _, prepare = prepare.partition("\n")

    uploaded = _run(house, tmp_path, upload)
    prepared = _run(house, tmp_path, prepare.replace("uploads/…/export.zip", uploaded["file_path"]))
    repaired = _run(house, tmp_path, divide)
    grown = _run(house, tmp_path, grow.replace("uploads/…/more.zip", more))

    assert (prepared["num_samples"], prepared["passed"]) == (60, True)
    leaking = json.loads((tmp_path / "split.json").read_text())
    assert leaking["leakage"]["test"]["near_share"] > 0.5
    assert repaired["leakage"] == leaking["repair"]["after"]
    assert repaired["leakage"]["test"]["near_share"] == 0
    assert "20 frames and 20 objects are new" in grown["message"]
    assert grown["split"]["test_samples"] >= prepared["split"]["test_samples"]


def test_the_pictures_it_shows_are_there() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", DOCUMENT.read_text())
    assert len(shown) == 2
    assert all((DOCUMENT.parent / picture).is_file() for picture in shown)


def _run(house, folder: Path, commands: str) -> dict:
    assert ADDRESS in commands
    script = commands.replace(ADDRESS, house.settings.address).replace("curl ", "curl -sS --noproxy '*' ")
    done = subprocess.run(["bash", "-ec", script], cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    answer: dict = json.loads(done.stdout)
    return answer
