"""What journals say, brought to the event stream: the same bytes, in order, until Redis took them.

The journal is the truth, so nothing is kept here but how far each one is published. The supervisor rings when a journal
grew; no file is polled. `job.progressed` is in no journal: it is published once, or dropped while Redis is away.
"""

import asyncio
import contextlib
import itertools
from pathlib import Path

import structlog

from gpu_runner.attempts import Attempt, Key
from jobs.bus import UNREACHABLE, Bus

log = structlog.get_logger()

_BATCH_BYTES = 1 << 20
_TRY_AGAIN_S = 0.2


class Tail:
    """How far one journal is published: `n` lines, which end at a byte."""

    def __init__(self, journal: Path, n: int) -> None:
        self._journal = journal
        self.n = 0
        self._offset = 0
        if n > 0 and journal.exists():
            with journal.open("rb") as file:
                self.advance([line for line in itertools.islice(file, n) if line.endswith(b"\n")])

    def unpublished(self) -> list[bytes]:
        """Whole lines with their newline, about a megabyte at most."""
        try:
            with self._journal.open("rb") as file:
                file.seek(self._offset)
                lines = file.readlines(_BATCH_BYTES)
        except FileNotFoundError:
            return []
        return [line for line in lines if line.endswith(b"\n")]

    def advance(self, lines: list[bytes]) -> None:
        self.n += len(lines)
        self._offset += sum(map(len, lines))


class Publisher:
    """One task for all journals of a runner."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tails: dict[Key, Tail] = {}
        self._grown: set[Key] = set()
        self._progress: dict[Key, bytes] = {}
        self._news = asyncio.Event()
        self._done = asyncio.Event()
        self._is_away = False

    def follow(self, attempt: Attempt, after_n: int) -> None:
        """Publish what the journal has behind line `after_n`, now and whenever `ring` is called."""
        self._tails[attempt.key] = Tail(attempt.folder.journal, after_n)
        self.ring(attempt)

    def leave(self, attempt: Attempt) -> None:
        del self._tails[attempt.key]
        self._grown.discard(attempt.key)

    def ring(self, attempt: Attempt) -> None:
        """Its journal grew; one that is not followed any more is of no interest."""
        if attempt.key in self._tails:
            self._grown.add(attempt.key)
            self._wake()

    def progress(self, attempt: Attempt, line: bytes) -> None:
        """Publish a line that is in no journal, instead of an earlier one that is not yet out."""
        self._progress[attempt.key] = line
        self._wake()

    def published_n(self, attempt: Attempt) -> int:
        tail = self._tails.get(attempt.key)
        return tail.n if tail else 0

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._news.wait()
            while not self._is_done:
                if not await self._publish():
                    await asyncio.sleep(_TRY_AGAIN_S)
            self._news.clear()
            self._done.set()

    async def flush(self, within_s: float) -> bool:
        """Wait until all is published; False when the time was too short."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._done.wait()
        return self._is_done

    def _wake(self) -> None:
        self._done.clear()
        self._news.set()

    @property
    def _is_done(self) -> bool:
        return not self._grown and not self._progress

    async def _publish(self) -> bool:
        """One batch over all journals that grew; False when Redis did not take it."""
        read = {key: (self._tails[key], self._tails[key].unpublished()) for key in self._grown}
        self._grown = {key for key, (_, lines) in read.items() if lines}  # read again until there is nothing
        messages = list(self._progress.values())
        messages += [line.removesuffix(b"\n") for _, lines in read.values() for line in lines]
        self._progress.clear()
        if not messages:
            return True
        try:
            await self._bus.publish(messages)
        except UNREACHABLE as error:
            self._say_away(error)
            return False
        self._is_away = False
        for tail, lines in read.values():  # one that was exchanged meanwhile is no longer looked at
            tail.advance(lines)
        return True

    def _say_away(self, error: BaseException) -> None:
        if not self._is_away:
            log.warning("redis.away", error=str(error))
        self._is_away = True
