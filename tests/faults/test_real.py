"""The same with the real trainer: a tiny vision-language model in fp32 on the CPU, where resuming is exact."""

import random
import subprocess
import sys

import pytest
from plan import schedules
from world import Expected, World

from jobs.calls import Json
from jobs.client import Client


@pytest.fixture(scope="module")
def real(worlds_of):
    return worlds_of(
        trainer="real_trainer", gpu_slots=1, lease_s=6.0, report_every_s=0.5, stop_grace_s=10.0, prepare=prepare
    )


@schedules("real")
def test_a_real_training_killed_twice_equals_the_uninterrupted_one(real, seed) -> None:
    world, dice = real.get(), random.Random(seed)
    for member in world.members:
        member.pause_s = dice.choice([0.0, 0.5])
    job_id = world.until(lambda: _submitted(world), "nobody accepts a job")
    world.expect(Expected(job_id, {"completed"}, twin=world.twin))
    killed = []
    for target in dice.choices(["child", "child", "runner", "service", "redis", "zygote"], k=2):
        step = dice.randrange(0, 8)
        world.until(lambda step=step: world.step(job_id) >= step or job_id not in world.unended, "no step is made")
        world.pass_time(dice.uniform(0, 0.3))
        if world.kill(target):
            killed.append(target)
    real.check(seed, killed=killed)


def _submitted(world: World) -> str | None:
    try:
        return world.client.submit({"kind": "finetune", "config": world.config})
    except Exception:  # the service is on its way up
        return None


def prepare(world: World) -> None:
    """Rows of the sample export, and one run that nothing happens to: every other must equal it."""
    export = world.root.folder / "sample.zip"
    command = [sys.executable, "-m", "gpu_runner.sam2.sample", str(export), "--videos", "4", "--frames", "12"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with Client(world.settings.address, timeout_s=600) as client:  # its first answer waits until torch is loaded
        uploaded = client.upload(export)
        body = {"sam2_zip_path": uploaded["file_path"], "output_dir": "real/llava", "target_format": "llava"}
        client.post("/api/data/convert", body)
        body = {"data_path": "real/llava", "output_dir": "real/split", "strategy": "random"}
        split = client.post("/api/data/split", body | {"train_ratio": 0.6, "val_ratio": 0.2, "test_ratio": 0.2})
    world.config = _config(split)
    world.twin = world.client.submit({"kind": "finetune", "config": world.config})
    world.until(lambda: world.status(world.twin) == "completed", "the uninterrupted run does not complete")


def _config(split: Json) -> Json:
    return {
        "model_name": "demo-llava",
        "train_data_path": split["train_path"],
        "val_data_path": split["val_path"],
        "num_epochs": 20,
        "max_steps": 8,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "max_length": 256,
        "logging_steps": 2,
        "eval_steps": 4,
        "save_steps": 2,
        "device": "cpu",
        "fp16": False,
        "bf16": False,
    }
