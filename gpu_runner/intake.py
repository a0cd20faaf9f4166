"""What the service wishes of this runner. Commands come from the runner's own stream and may be repeated.

A start goes through arq's queue, so that slots are respected; anything about a held attempt goes to the supervisor.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix

from gpu_runner.attempts import Attempt, Attempts
from gpu_runner.publisher import Publisher
from gpu_runner.supervisor import Supervisor
from jobs import keys
from jobs.bus import BEGINNING, UNREACHABLE, Bus
from jobs.commands import AnyCommand, Cancel, Pause, Resend, Start

log = structlog.get_logger()

FUNCTION = "run_job"
"""arq's name of the one function its workers have; the job's id and the attempt are its arguments."""
_TRY_AGAIN_S = 0.2


class Intake:
    """Hears commands and carries them out. `changed` is called whenever the next report would differ."""

    def __init__(
        self,
        *,
        runner_id: str,
        bus: Bus,
        pool: ArqRedis,
        attempts: Attempts,
        supervisor: Supervisor,
        publisher: Publisher,
        changed: Callable[[], None],
    ) -> None:
        self._runner_id = runner_id
        self._bus = bus
        self._pool = pool
        self._attempts = attempts
        self._supervisor = supervisor
        self._publisher = publisher
        self._changed = changed
        self._after = BEGINNING

    async def begin(self) -> None:
        """Skip what was sent before: whatever of it still holds is sent again after the first report."""
        while True:
            try:
                self._after = await self._bus.commands_end(self._runner_id)
                return
            except UNREACHABLE:
                await asyncio.sleep(_TRY_AGAIN_S)

    async def listen(self) -> None:
        """Carry out commands until cancelled."""
        while True:
            try:
                await self._hear()
            except UNREACHABLE:
                await asyncio.sleep(_TRY_AGAIN_S)

    async def requeue(self) -> None:
        """Queue again what a Redis that was wiped forgot. Raises what `UNREACHABLE` names."""
        for attempt in self._attempts.waiting():
            await self._enqueue(attempt)

    async def carry_out(self, command: AnyCommand) -> None:
        held = self._attempts.get(command.job_id, command.attempt)
        match command:
            case Start() if held is None:
                await self._take_on(command)
            case Cancel() if held is not None:
                self._cancel(held)
            case Pause() if held is not None:
                self._supervisor.pause(held)
            case Resend() if held is not None:
                self._publisher.follow(held, command.from_n - 1)

    async def _hear(self) -> None:
        before = self._after
        self._after, wishes = await self._bus.read_commands(self._runner_id, before)
        if not wishes and _number(await self._bus.commands_end(self._runner_id)) < _number(before):
            self._after = BEGINNING  # another stream, whose clock may be behind: nothing of it was heard yet
        for wish in wishes:
            try:
                await self.carry_out(wish)
            except Exception:  # a full disk, say; the service repeats what is not done
                log.exception("command.failed", job_id=wish.job_id, attempt=wish.attempt)

    async def _take_on(self, start: Start) -> None:
        attempt = await self._attempts.take_on(start)
        log.info("attempt.taken", job_id=start.job_id, attempt=start.attempt, state=attempt.state, device=start.device)
        self._publisher.follow(attempt, attempt.old_n)
        self._changed()
        if attempt.state == "queued":
            with contextlib.suppress(*UNREACHABLE):  # then the next report queues it
                await self._enqueue(attempt)

    def _cancel(self, held: Attempt) -> None:
        """End it; or let it go when it has ended and its lines are out."""
        if held.state != "finished":
            self._supervisor.cancel(held)
        elif self._publisher.published_n(held) >= held.last_n:
            self._publisher.leave(held)
            self._attempts.forget(held)
            self._changed()

    async def _enqueue(self, attempt: Attempt) -> None:
        """Put it into the queue unless it is there."""
        # A start that broke off with Redis would block it until arq's timeout, which is longer than any job.
        await self._pool.delete(in_progress_key_prefix + attempt.name)
        await self._pool.enqueue_job(
            FUNCTION,
            attempt.job_id,
            attempt.number,
            _job_id=attempt.name,
            _queue_name=keys.queue(self._runner_id, str(attempt.slot)),
        )


def _number(entry_id: str) -> tuple[int, int]:
    """A stream's entry id as something that can be compared."""
    milliseconds, _, counter = entry_id.partition("-")
    return int(milliseconds), int(counter)
