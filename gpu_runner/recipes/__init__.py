"""The recipes: one file a kind, each `run(work) -> Result`, read top to bottom. The list below is the registry.

A recipe says what happens through `work.journal`, asks `work.stop` where it can end cleanly, raises `JobFailed`
when the user can mend it, and returns its result. It writes into `work.folder`, `datasets/` or `exports/` only.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import FrameType
from typing import Any, Generic, Literal, TypeVar

from gpu_runner.journal import Journal
from jobs.paths import AttemptFolder, DataRoot
from jobs.results import Result
from jobs.settings import Settings
from jobs.specs import Kind

SpecT = TypeVar("SpecT")

RECIPES = {
    Kind.CONVERT: "gpu_runner.recipes.convert",
    Kind.VALIDATE: "gpu_runner.recipes.validate",
    Kind.SPLIT: "gpu_runner.recipes.split",
    Kind.FINETUNE: "gpu_runner.recipes.finetune",
    Kind.EVALUATE: "gpu_runner.recipes.evaluate",
    Kind.GENERATE: "gpu_runner.recipes.generate",
    Kind.EXPORT: "gpu_runner.recipes.export",
}


class Stopped(Exception):
    """The work ended early because somebody wanted it to."""


class Stop:
    """Whether somebody wants the work to end. SIGTERM means cancel, SIGUSR1 means pause; cancel wins."""

    def __init__(self) -> None:
        self.wanted: Literal["cancel", "pause"] | None = None

    def listen(self) -> None:
        """Take the two signals of this process."""
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGUSR1, self._pause)

    def check(self) -> None:
        """Raises Stopped when a cancel is wanted. Work that cannot be paused goes on through a pause."""
        if self.wanted == "cancel":
            raise Stopped

    def _cancel(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted = "cancel"

    def _pause(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted = self.wanted or "pause"


@dataclass(frozen=True)
class Work(Generic[SpecT]):
    """What a recipe gets: its spec, its folders, its device, and whom to tell.

    `device` is `cpu` or `cuda:<index>`. `cores` is how many threads it may use.
    """

    job_id: str
    attempt: int
    spec: SpecT
    device: str
    cores: int
    root: DataRoot
    folder: AttemptFolder
    journal: Journal
    stop: Stop
    settings: Settings


def recipe(kind: Kind) -> Callable[[Work[Any]], Result]:
    """The `run` of a kind; imports its module."""
    run: Callable[[Work[Any]], Result] = import_module(RECIPES[kind]).run
    return run
