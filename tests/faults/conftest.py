"""The fault tests run when they are asked for: `pytest -m faults`, which is `make faults-ci`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import invariants
import plan
import pytest
from world import PATIENCE, Violation, World

from jobs import backoff

_SCHEDULES_A_WORLD = 30  # so that what is checked after each one stays small


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.faults)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900 * PATIENCE))  # what hangs is seen earlier, by `World.until`
    if ours and "faults" not in config.option.markexpr:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def pytest_report_header() -> str:
    return f"faults: SEED={plan.BASE} repeats these schedules"


class Worlds:
    """One world after another: a schedule gets the one that is there, unless it was broken or used for long."""

    def __init__(
        self, folder: Callable[[], Path], prepare: Callable[[World], None] = lambda _: None, **options: Any
    ) -> None:
        self._folder = folder
        self._prepare = prepare
        self._options = options
        self._world: World | None = None
        self._used = 0

    def get(self) -> World:
        if self._world is None or self._used >= _SCHEDULES_A_WORLD:
            self.close()
            self._world = World(self._folder(), **self._options).__enter__()
            try:
                self._prepare(self._world)
            except BaseException:
                self.throw_away()
                raise
        self._used += 1
        return self._world

    def close(self) -> None:
        """End the world; what it leaves behind is a violation as any other."""
        world, self._world, self._used = self._world, None, 0
        if world is not None:
            world.__exit__()
            if world.faults:
                raise Violation("\n".join(world.faults))

    def check(self, seed: str, **facts: Any) -> None:
        """Let the world settle and judge it."""
        world = self._world
        assert world is not None
        try:
            took = world.settle()
            gone_s = world.until_gone(lambda: not list(invariants.nothing_is_left(world)))
            world.catch_up()
            wrong = invariants.check(world)
        except BaseException as error:
            plan.note(seed, violations=[str(error).partition("\n")[0]])
            self.throw_away()
            raise
        if took > plan.RECOVERED_WITHIN_S * PATIENCE:
            wrong.append(f"the jobs ended {took:.1f} s after the schedule")
        plan.note(seed, settled_s=round(took, 3), gone_s=round(gone_s, 3), violations=wrong, **facts)
        if wrong:
            what = "\n".join(wrong)
            said = world.describe()
            self.throw_away()
            raise Violation(f"SEED={seed}\n{what}\n{said}")

    def throw_away(self) -> None:
        """A world in which something went wrong is not used again."""
        world, self._world, self._used = self._world, None, 0
        if world is not None:
            world.__exit__()


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Clients knock again at once: the pauses between their tries would be most of a schedule's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backoff, "FIRST_PAUSE_S", 0.1)
        patched.setattr(backoff, "LONGEST_PAUSE_S", 0.5)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("w")


@pytest.fixture(scope="module")
def worlds(folders: Callable[[], Path]) -> Iterator[Worlds]:
    """Worlds with the fake trainer and one runner."""
    made = Worlds(folders)
    yield made
    made.close()


@pytest.fixture(scope="module", name="worlds_of")
def worlds_of_fixture(folders: Callable[[], Path]) -> Iterator[Callable[..., Worlds]]:
    """Makes worlds with other options; they end with the module, each of them even where another leaves something."""
    with contextlib.ExitStack() as made:

        def make(folder: Callable[[], Path] = folders, **options: Any) -> Worlds:
            worlds = Worlds(folder, **options)
            made.callback(worlds.close)
            return worlds

        yield make
