"""SIGKILL at random times: of the service, the runner, a child, the zygote, Redis."""

import random

from plan import schedules

TARGETS = ("service", "runner", "child", "zygote", "redis")


@schedules("kills")
def test_nothing_is_lost_when_any_two_processes_are_killed(worlds, seed) -> None:
    """A pair, and then another pair."""
    dice = random.Random(seed)
    world = worlds.get()
    for member in world.members:
        member.pause_s = dice.choice([0.0, 0.2, 1.0])
    killed: list[str] = []

    def kill(target: str) -> None:
        if world.kill(target) or world.kill("child") or world.kill("service"):  # where there is no child at the moment
            killed.append(target)

    schedule = []
    for number in range(dice.randint(2, 3)):
        spec = world.spec(
            dice.randrange(10**9),
            steps=dice.randint(20, 150),
            save_steps=dice.randint(2, 10),
            logging_steps=dice.randint(1, 4),
        )
        schedule.append((dice.uniform(0, 0.5) * number, lambda spec=spec: world.submit_surely(spec)))
    for begin_s in (0.0, 1.2):
        for target in dice.choices(TARGETS, k=2):
            schedule.append((begin_s + dice.uniform(0, 1.2), lambda target=target: kill(target)))
    world.run(schedule)
    worlds.check(seed, killed=killed)
