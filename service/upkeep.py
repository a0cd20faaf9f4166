"""How the parts fare that work in the background: a fault of ours is logged, and `/health` names the part.

Most parts do the same again after a pause, and what was missed is found then; so a fault in one ends neither it nor
the others. Where memory may no longer be what is on the disk there is nothing to repeat: the program ends, and
whoever started it (compose, systemd, `training-api up`) starts it again from the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()


class Upkeep:
    """`failing` says of each part that failed the last time what was wrong; `is_over` that the program must end."""

    def __init__(self) -> None:
        self.failing: dict[str, str] = {}
        self.is_over = False

    @contextmanager
    def of(self, part: str, *awaited: type[Exception]) -> Iterator[None]:
        """Around what a part does each time: an exception is noted here and goes no further. Those that are `awaited`,
        of a database that is full or a Redis that is away, are no fault of ours, and no sign that one is over."""
        try:
            yield
        except awaited as error:
            log.warning("part.waiting", part=part, error=str(error))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            if self.failing.get(part) == what:
                log.error("part.failing", part=part, error=what)
            else:
                log.exception("part.failed", part=part)
            self.failing[part] = what
        else:
            self.works(part)

    @contextmanager
    def of_vital(self, part: str) -> Iterator[None]:
        """The same around what cannot be done again."""
        with self.of(part):
            yield
        self.is_over = self.is_over or part in self.failing

    def works(self, part: str) -> None:
        """It did what it is for."""
        self.failing.pop(part, None)
