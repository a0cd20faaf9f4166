"""The three programs for real, on a data root of their own, shared by all tests of this folder."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import processes_of

from jobs.calls import Json
from jobs.client import Client
from jobs.lifecycle import TERMINAL
from jobs.settings import Settings
from service.programs import Programs, free_port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


@dataclass(frozen=True)
class House:
    """A running service with its runner and Redis."""

    programs: Programs
    settings: Settings
    client: Client

    @property
    def root(self) -> Path:
        return self.settings.data_folder

    def run(self, spec: Json) -> Json:
        """Submit a job and wait for its end; the whole job."""
        return self.end_of(self.client.submit(spec))

    def end_of(self, job_id: str) -> Json:
        *_, last = self.watch(job_id)
        return last

    def watch(self, job_id: str) -> Iterator[Json]:
        """The job again and again until it has ended; what died meanwhile is started again."""
        while True:
            job = self.client.job(job_id)
            yield job
            if job["status"] in TERMINAL:
                return
            self.programs.revive()
            time.sleep(0.2)

    def until(self, job_id: str, step: int) -> Json:
        """Wait until the running job has logged this step."""
        for job in self.watch(job_id):
            if job["status"] == "running" and (job["step"] or 0) >= step:
                return job
        raise AssertionError(f"{job_id} ended as {job['status']} before step {step}: {job.get('failure_detail')}")

    def processes(self) -> dict[int, str]:
        """pid → command line of every living process that belongs to this data root, zombies excluded."""
        return processes_of(self.root)

    def child_of(self, job_id: str) -> int:
        """The process that executes a job: the one that holds its lock file and is not the runner."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for pid, command in self.processes().items():
                if "gpu_runner.worker" not in command and _holds(pid, f"{job_id}."):
                    return pid
            time.sleep(0.02)
        raise AssertionError(f"no process holds the lock of {job_id}")

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(name="processes_of")
def processes_of_fixture() -> Callable[[Path], dict[int, str]]:
    return processes_of


def _holds(pid: int, name: str) -> bool:
    try:
        return any(name in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("house")
    settings = Settings(
        data_root=str(root),
        port=free_port("127.0.0.1"),
        hf_offline=True,
        lease_s=6,
        report_every_s=0.5,
        stop_grace_s=5,
        outgoing_networks=("127.0.0.0/8",),
    )
    with Programs(settings, log_folder=root / "logs") as programs:
        programs.wait_until_ready()
        with Client(settings.address) as client:
            yield House(programs, settings, client)
    left = processes_of(root)
    assert not left, f"processes were left behind: {left}"


@pytest.fixture(scope="session")
def sample_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample export: three short videos."""
    target = tmp_path_factory.mktemp("sample") / "sample.zip"
    command = [sys.executable, "-m", "gpu_runner.sam2.sample", str(target), "--videos", "4", "--frames", "12"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


@pytest.fixture(scope="session")
def split(house: House, sample_zip: Path) -> Json:
    """The sample uploaded, converted and split; the answer of the split."""
    uploaded = house.client.upload(sample_zip)
    job = {"sam2_zip_path": uploaded["file_path"], "output_dir": "shared/llava", "task": "classify"}  # short answers
    converted = house.client.post("/api/data/convert", job)
    body = {"data_path": converted["output_dir"], "output_dir": "shared/split", "strategy": "random"}
    return house.client.post("/api/data/split", body | {"train_ratio": 0.8, "val_ratio": 0.1, "test_ratio": 0.1})


@pytest.fixture(scope="session")
def config(split: Json) -> Json:
    """A LoRA run of the demo model, twelve steps in fp32, with a checkpoint every three."""
    return {
        "model_name": "demo-llava",
        "train_data_path": split["train_path"],
        "val_data_path": split["val_path"],
        "num_epochs": 20,
        "max_steps": 12,
        "batch_size": 4,  # evaluations answer as many rows at once, and those are most of a run's time
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "max_length": 256,
        "logging_steps": 2,
        "eval_steps": 6,
        "save_steps": 3,
        "device": "cpu",
        "fp16": False,
        "bf16": False,
    }
