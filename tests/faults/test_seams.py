"""SIGKILL at named seams: between two lines of the service, the runner or a child."""

import random

import seams
from plan import schedules


@schedules("seams")
def test_nothing_is_lost_when_a_process_dies_at_a_seam(worlds, seed) -> None:
    """One seam of each program at once; those that are not passed are counted."""
    world, number = worlds.get(), int(seed.split("-")[2])
    dice = random.Random(seed)
    for member in world.members:
        member.pause_s = 0.0
    armed = []
    for program in ("service", "runner", "child"):
        all_of_it = seams.names(program)
        armed.append(all_of_it[number % len(all_of_it)])
        # The n-th occurrence rises from sweep to sweep; the first sweeps meet the early ones.
        world.arm(armed[-1], 1 + number // len(all_of_it) + dice.randrange(3))
    for _ in range(3):
        world.submit_surely(world.spec(dice.randrange(10**9), steps=30, save_steps=3))
        world.pass_time(dice.uniform(0, 0.3))
    world.until(lambda: not world.unended, f"jobs did not end; armed {armed}")
    missed = seams.disarm(world.root.folder)
    worlds.check(seed, seams=sorted(set(armed) - missed), not_passed=sorted(missed))
