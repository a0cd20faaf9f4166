"""No room: a volume that fills up while jobs run, and limits on file sizes. What there is stays readable.

The small volumes are tmpfs, which only root may mount: elsewhere the limits on file sizes are all there is, and the
skipped tests say so.
"""

import contextlib
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from plan import schedules
from world import World

VOLUMES = {"root": "", "jobs": "jobs", "redis": "redis"}
_MOUNT_MB = 24


@pytest.fixture(scope="module")
def on_small_volumes(folders, worlds_of) -> Iterator[object]:
    """A world whose data root, jobs and Redis lie on small volumes of their own."""
    mounted: list[Path] = []

    def mounted_folder() -> Path:
        root = folders()
        for name in VOLUMES.values():
            place = root / name
            place.mkdir(exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={_MOUNT_MB}m", "tmpfs", str(place)]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode:
                pytest.skip(f"small volumes cannot be mounted here: {answer.stderr.strip()}")
            mounted.append(place)
        return root

    made = worlds_of(folder=mounted_folder)
    yield made
    made.close()
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(place)], check=False)


@schedules("disk")
def test_jobs_end_and_say_why_when_a_volume_is_full(on_small_volumes, seed) -> None:
    world, dice = on_small_volumes.get(), random.Random(seed)
    volume = list(VOLUMES)[int(seed.split("-")[2]) % len(VOLUMES)]
    jobs = _jobs(world, dice)
    world.pass_time(dice.uniform(0.1, 0.8))
    with full(world.root.folder / VOLUMES[volume]):
        world.pass_time(dice.uniform(0.5, 2))
        assert world.client.get("/api/jobs")["jobs"], "the service is not readable on a full disk"
    world.until(lambda: not world.unended, "jobs do not go on when there is room again")
    on_small_volumes.check(seed, volume=volume, reasons=_reasons(world, jobs))


@schedules("disk")
def test_a_limit_on_file_sizes_is_survived_by_each_program(worlds, seed) -> None:
    world, dice = worlds.get(), random.Random(seed)
    whom = dice.choice(["service", "runner", "child", "redis"])
    jobs = _jobs(world, dice)
    world.until(lambda: world.children() or not world.unended, "no job runs")
    world.pass_time(dice.uniform(0.1, 0.6))
    pid = {
        "service": world.service.pid,
        "runner": world.runner.pid,
        "child": next(iter(world.children()), 0),
        "redis": world.redis_pid(),
    }[whom]
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid or 0, resource.RLIMIT_FSIZE)
        resource.prlimit(pid or 0, resource.RLIMIT_FSIZE, (dice.choice([1, 5000]), hard))
        world.pass_time(dice.uniform(0.3, 1.5))
        resource.prlimit(pid or 0, resource.RLIMIT_FSIZE, (hard, hard))
    worlds.check(seed, limited=whom, reasons=_reasons(world, jobs))


def _jobs(world: World, dice: random.Random) -> list[str]:
    return [
        world.submit_surely(
            world.spec(dice.randrange(10**9), steps=60, save_steps=4, tags=("step-s=0.02",)),
            ends={"completed", "failed"},
        )
        for _ in range(2)
    ]


def _reasons(world: World, jobs: list[str]) -> list[str]:
    """Why jobs failed; a full disk is the only reason there may be."""
    found = [
        world.rows("SELECT json_extract(record, '$.failure_reason') FROM jobs WHERE job_id = ?", job_id)[0][0]
        for job_id in jobs
        if world.status(job_id) == "failed"
    ]
    assert set(found) <= {"disk_full"}, found
    return found


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """The volume has not a byte left within."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x"):
                pass
        yield
    finally:
        filler.unlink()
