"""The life of one attempt: fork a child, listen to it, end it when asked, and say how it ended if it cannot.

arq calls `execute` through the worker, intake calls the rest. An attempt is finished when nothing of it lives and its
journal has its last line; it is then held and reported until the service lets it go.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, closing
from functools import partial

import structlog

from gpu_runner.attempts import Attempt, Who
from gpu_runner.child import Assignment
from gpu_runner.doorbell import Doorbell
from gpu_runner.forker import Child, Ending, Forker, NotStarted
from gpu_runner.oom import OomKills
from gpu_runner.publisher import Publisher
from gpu_runner.pulse import Pulse
from jobs import events
from jobs.errors import FailureReason
from jobs.events import Device, Event
from jobs.specs import Slot
from jobs.values import devices_of

log = structlog.get_logger()

_TRY_AGAIN_S = 1.0
_CANCEL_GRACE_S = 3.0  # a cancel saves nothing, and loading a model does not listen
_STOPPING = "the runner is stopping"
_OUT_OF_MEMORY = (
    "The host ran out of memory and the system killed the job: use a smaller batch_size or max_length, or use_qlora, "
    "or run fewer jobs at once."
)


class Supervisor:
    """Runs attempts. `changed` is called whenever the next report would differ."""

    def __init__(
        self,
        *,
        runner_id: str,
        recipes: str,
        devices: tuple[Device, ...],
        stop_grace_s: float,
        hang_after_s: float,
        forker: Forker,
        publisher: Publisher,
        changed: Callable[[], None],
        oom_kills: OomKills | None = None,
    ) -> None:
        self._runner_id = runner_id
        self._recipes = recipes
        self._devices = {device.device_id: device for device in devices}
        self._rooms = {
            (device.device_id, slot): asyncio.Semaphore(count)
            for device in devices
            for slot, count in device.slots.items()
        }
        self._stop_grace_s = stop_grace_s
        self._hang_after_s = hang_after_s
        self._forker = forker
        self._publisher = publisher
        self._changed = changed
        self._oom_kills = oom_kills or OomKills()
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(self, attempt: Attempt) -> None:
        """Bring a queued attempt to its end; returns at once when that is under way already.

        The attempt does not depend on the caller: a caller that is cancelled leaves it running.
        """
        if attempt.state == "queued" and not attempt.claimed:
            attempt.claimed = True
            await asyncio.shield(self._begin(self._live(attempt)))

    def cancel(self, attempt: Attempt) -> None:
        """End it because somebody wants that; `job.cancelled` comes when nothing of it lives."""
        self._end(attempt, "cancel")

    async def interrupt(self, attempt: Attempt) -> None:
        """End it because the runner stops, and wait for its end; the work may save its state first."""
        self._end(attempt, "stopping")
        await attempt.over.wait()

    def pause(self, attempt: Attempt) -> None:
        """Let it save its state and end at its next step."""
        if attempt.child is not None and attempt.ending is None:
            self._forker.signal(attempt.child, signal.SIGUSR1)

    # -- to the end

    def _end(self, attempt: Attempt, who: Who) -> None:
        if attempt.state == "finished" or attempt.ending == "cancel":
            return
        is_first = attempt.ending is None
        attempt.ending = who
        if is_first and attempt.state == "queued":
            self._begin(self._conclude(attempt, _wanted_end(attempt, who)))
        elif is_first and attempt.child is not None:
            self._ask_to_end(attempt, attempt.child)

    def _ask_to_end(self, attempt: Attempt, child: Child) -> None:
        is_cancel = attempt.ending == "cancel"
        self._forker.signal(child, signal.SIGTERM if is_cancel else signal.SIGUSR2)
        grace_s = min(self._stop_grace_s, _CANCEL_GRACE_S) if is_cancel else self._stop_grace_s
        kill = partial(self._forker.signal, child, signal.SIGKILL)
        attempt.last_resort = asyncio.get_running_loop().call_later(grace_s, kill)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- one life

    async def _live(self, attempt: Attempt) -> None:
        rooms = [self._rooms.get((device_id, attempt.slot)) for device_id in sorted(devices_of(attempt.device))]
        async with AsyncExitStack() as taken:
            for room in rooms:  # in one order for all: two jobs never hold what the other waits for
                if room is None:
                    cause = f"this runner has no device {attempt.device} for {attempt.slot} work"
                    await self._conclude(attempt, _interrupted(attempt, cause))
                    return
                await taken.enter_async_context(room)
            await self._forker.until_ready()
            if attempt.ending is None:
                await self._run(attempt)

    async def _run(self, attempt: Attempt) -> None:
        attempt.state = "running"
        self._changed()
        try:
            last = await self._run_child(attempt)
        except (NotStarted, OSError) as error:
            last = _last(attempt, f"the job could not be started: {error}")
        while not await asyncio.to_thread(attempt.lock.end_survivors):
            log.error("attempt.will_not_die", job_id=attempt.job_id, attempt=attempt.number)
        await self._conclude(attempt, last)

    async def _run_child(self, attempt: Attempt) -> Event:
        """From the fork to the end of the child; what is to be said of the end where the journal says nothing.

        Raises NotStarted or OSError when there is no child.
        """
        kills_before = self._oom_kills.count()
        pulse = Pulse(self._hang_after_s)

        def ring() -> None:
            pulse.beat()
            self._publisher.ring(attempt)

        def progress(line: bytes) -> None:
            pulse.progress(line)
            self._publisher.progress(attempt, line)

        with closing(Doorbell(ring, progress)) as doorbell:
            child = attempt.child = await self._fork(attempt, doorbell)
            log.info("attempt.started", job_id=attempt.job_id, attempt=attempt.number, pid=child.pid)
            if attempt.ending is not None:  # somebody asked while it was being forked
                self._ask_to_end(attempt, child)
            has_hung = attempt.slot is Slot.GPU and await self._feel(child, pulse)
            ending = await asyncio.shield(child.ended)
        if has_hung and attempt.ending is None:
            return _interrupted(attempt, f"it showed no sign of life for {pulse.limit_s:.0f} s")
        if ending.exit_code == -signal.SIGKILL and attempt.ending is None and self._oom_kills.explain_one(kills_before):
            return attempt.event(events.JobFailed, reason=FailureReason.OUT_OF_MEMORY, detail=_OUT_OF_MEMORY)
        return _last(attempt, _cause(ending))

    async def _feel(self, child: Child, pulse: Pulse) -> bool:
        """Return when the child ended; True when it had to be killed because its pulse stopped."""
        while not child.ended.done():
            await asyncio.wait([child.ended], timeout=pulse.look_every_s)
            if not child.ended.done() and pulse.has_stopped():
                self._forker.signal(child, signal.SIGKILL)
                return True
        return False

    async def _fork(self, attempt: Attempt, doorbell: Doorbell) -> Child:
        devices = [self._devices[device_id] for device_id in devices_of(attempt.device)]
        names = Counter(device.name for device in devices)
        slots = sum(other.slots.get(attempt.slot, 0) for other in self._devices.values())
        assignment = Assignment(
            attempt_folder=str(attempt.folder.folder),
            runner_id=self._runner_id,
            device_name=", ".join(name if n == 1 else f"{n} × {name}" for name, n in names.items()),
            cores=max(1, len(os.sched_getaffinity(0)) * len(devices) // slots),
            recipes=self._recipes,
        )
        with ExitStack() as handed_over:
            handed_over.callback(doorbell.hand_over)
            output = os.open(attempt.folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            handed_over.callback(os.close, output)
            lock = attempt.lock.take()
            handed_over.callback(os.close, lock)
            return await self._forker.fork(assignment, doorbell.write_end, output, lock)

    async def _conclude(self, attempt: Attempt, last: Event) -> None:
        """Write the last line, as often as it takes, and let it be published."""
        while True:
            try:
                await asyncio.to_thread(attempt.conclude, last)
                break
            except OSError as error:  # a full disk, most of all: what is true waits until there is room for it
                log.error("journal.unwritable", job_id=attempt.job_id, attempt=attempt.number, error=str(error))
                await asyncio.sleep(_TRY_AGAIN_S)
        if attempt.last_resort is not None:
            attempt.last_resort.cancel()
        attempt.over.set()
        self._publisher.ring(attempt)
        self._changed()


def _last(attempt: Attempt, cause: str) -> Event:
    """The end somebody asked for, or an interruption by the cause."""
    return _wanted_end(attempt, attempt.ending) if attempt.ending else _interrupted(attempt, cause)


def _wanted_end(attempt: Attempt, who: Who) -> Event:
    if who == "cancel":
        return attempt.event(events.JobCancelled)
    return attempt.event(events.JobInterrupted, cause=_STOPPING, planned=True)


def _interrupted(attempt: Attempt, cause: str) -> Event:
    return attempt.event(events.JobInterrupted, cause=cause)


def _cause(ending: Ending) -> str:
    if ending.exit_code is None:
        return "the process that starts jobs died"
    if ending.exit_code < 0:
        return f"the process was killed by signal {-ending.exit_code}"
    return f"the process ended with status {ending.exit_code} and without a result"
