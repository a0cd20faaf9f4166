"""What lies between: a frozen process, a Redis that forgets, a network that breaks, a database that is copied."""

import random
import shutil
import signal
import sqlite3
from contextlib import closing

import invariants
import pytest
from plan import schedules
from world import PATIENCE, World


def jobs_of(world: World, dice: random.Random, count: int, steps: int = 60) -> list[str]:
    specs = [
        world.spec(dice.randrange(10**9), steps=steps, save_steps=dice.randint(2, 10), tags=("step-s=0.02",))
        for _ in range(count)
    ]
    return [world.submit_surely(spec) for spec in specs]


@pytest.fixture(scope="module")
def two_runners(worlds_of):
    return worlds_of(runners=2, gpu_slots=2)


@schedules("frozen")
def test_a_process_that_stands_still_past_the_lease_does_no_harm(two_runners, seed) -> None:
    """The child of a frozen runner goes on writing: a zombie beside the attempt that took its place."""
    world, dice = two_runners.get(), random.Random(seed)
    jobs_of(world, dice, 3, steps=150)
    world.pass_time(dice.uniform(0.2, 1.5))
    whom = dice.choice(["runner", "runner", "runner and child", "zygote", "service", "redis"])
    lasts_s = world.settings.lease_s + dice.uniform(0.5, 2) * PATIENCE
    pids = {
        "runner": [world.runner.pid],
        "runner and child": [world.runner.pid, *world.children()],
        "zygote": world.zygotes()[:1],
        "service": [world.service.pid],
        "redis": [world.redis_pid()],
    }[whom]
    try:
        for pid in pids:
            world.signal(pid, signal.SIGSTOP)
        world.pass_time(lasts_s)
    finally:
        for pid in pids:
            world.signal(pid, signal.SIGCONT)
    two_runners.check(seed, frozen=whom, seconds=round(lasts_s, 1))


@schedules("redis")
def test_five_jobs_survive_a_redis_that_restarts_or_forgets(two_runners, seed) -> None:
    world, dice = two_runners.get(), random.Random(seed)
    how = ("AOF", "empty", "FLUSHALL")[int(seed.split("-")[2]) % 3]
    jobs_of(world, dice, 5)
    world.pass_time(dice.uniform(0, 1.2))
    if how == "FLUSHALL":
        with world.redis() as client:
            client.flushall()
    else:
        if how == "empty":
            (world.root.redis / "appendonlydir").rename(world.root.folder / f"forgotten-{seed}")
        world.kill("redis")
    two_runners.check(seed, redis=how)


@schedules("copies")
def test_a_copy_of_the_database_at_any_instant_is_whole_and_has_what_was_accepted(worlds, seed, tmp_path) -> None:
    world, dice = worlds.get(), random.Random(seed)
    wrong = []
    for number in range(3):
        jobs_of(world, dice, 1, steps=20)
        world.pass_time(dice.uniform(0, 0.3))
        accepted = set(world.jobs)
        target = tmp_path / f"copy-{number}.db"
        if number == 2:  # as a backup tool does it, while everything goes on
            with closing(sqlite3.connect(world.root.database)) as source, closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
        else:  # as a snapshot of the disk, or a power cut, leaves it
            with world.stopped(world.service):
                for suffix in ("", "-wal"):
                    file = world.root.database.with_name(world.root.database.name + suffix)
                    if file.exists():
                        shutil.copyfile(file, f"{target}{suffix}")
        wrong += [*invariants.accepted_are_there(target, accepted), *invariants.database_is_whole(target)]
    assert not wrong, f"SEED={seed}: {wrong}"
    worlds.check(seed)


@pytest.fixture(scope="module")
def behind_a_network(worlds_of):
    return worlds_of(behind_proxies=True)


@schedules("network")
def test_nothing_is_lost_when_the_network_cuts_delays_or_goes_half_open(behind_a_network, seed) -> None:
    world, dice = behind_a_network.get(), random.Random(seed)
    jobs_of(world, dice, 2, steps=100)
    done = []
    for _ in range(dice.randint(1, 3)):
        world.pass_time(dice.uniform(0.1, 0.8))
        mode = dice.choice(["cut", "delay", "swallow", "deaf"])
        whose = dice.choice([["service"], ["runner"], ["service", "runner"]])
        lasts_s = dice.choice([0.1, 0.5, 1.0, world.settings.lease_s + 1])
        done.append(f"{mode} {'+'.join(whose)} {lasts_s:.1f}")
        for name in whose:
            world.proxies[name].set(mode, dice.uniform(0.05, 0.6))
        world.pass_time(lasts_s)
        for name in whose:
            world.proxies[name].set("pass")
    behind_a_network.check(seed, network=done)
