"""What a recipe gets to work with: its spec, its folders, its device, whom to tell, and whether to end early.

The child makes it; recipes and the training loop use it.
"""

import signal
from dataclasses import dataclass
from types import FrameType
from typing import Generic, Literal, TypeVar

from gpu_runner.journal import Journal
from jobs.paths import AttemptFolder, DataRoot
from jobs.settings import Settings

SpecT = TypeVar("SpecT")


class Stopped(Exception):
    """The work ended early because somebody wanted it to."""


class Stop:
    """Whether somebody wants the work to end.

    SIGTERM means cancel: nothing is kept. SIGUSR2 means leave: the runner stops, and what can be saved is worth it.
    SIGUSR1 means pause. Cancel wins over leave, leave over pause.
    """

    def __init__(self) -> None:
        self.wanted: Literal["cancel", "leave", "pause"] | None = None

    def listen(self) -> None:
        """Take the three signals of this process."""
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGUSR2, self._leave)
        signal.signal(signal.SIGUSR1, self._pause)

    def check(self) -> None:
        """Raises Stopped when the work must end now, having nothing to save. Through a pause it goes on."""
        if self.wanted in ("cancel", "leave"):
            raise Stopped

    def check_cancel(self) -> None:
        """Raises Stopped on a cancel only: for work that looks at `wanted` where it can save its state."""
        if self.wanted == "cancel":
            raise Stopped

    def _cancel(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted = "cancel"

    def _leave(self, _signal: int, _frame: FrameType | None) -> None:
        if self.wanted != "cancel":
            self.wanted = "leave"

    def _pause(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted = self.wanted or "pause"


@dataclass(frozen=True)
class Work(Generic[SpecT]):
    """What a recipe gets: its spec, its folders, its device, and whom to tell.

    `device` is `cpu` or `cuda:<index>`; where helpers compute a part, each on a GPU of its own, `others` are theirs.
    `cores` is how many threads it may use. `recorded` is how many lines of the journals of earlier attempts are
    recorded, as (attempt, lines).
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
    others: tuple[str, ...] = ()
    recorded: tuple[tuple[int, int], ...] = ()
