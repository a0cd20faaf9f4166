"""What should run where, against what the runners report: whatever differs is stated or sent.

`decide` is pure; `Reconciler` carries its actions out every few seconds and whenever something changed. Nothing here
waits for an answer: a command that got lost is sent again because the next report still differs.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from jobs import commands, events, tasks
from jobs.bus import UNREACHABLE, Bus
from jobs.commands import AnyCommand
from jobs.errors import FailureReason, Unavailable
from jobs.events import Event, Held
from jobs.lifecycle import Status
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.values import named_together
from service import forecast
from service.durations import Durations
from service.ledger import Write
from service.model_names import ModelNames
from service.occupancy import PLACED, Capacities, Key, Occupancy, is_wanted, occupancy, rooms, since_s
from service.placement import Place, Wait, place
from service.recorder import Recorder
from service.records import JobRecord, RunnerView
from service.rooms import Needs, Room, Waiting, waiting_for

log = structlog.get_logger()

REDIS_AWAY = "Redis cannot be reached, so no runner can be told; the job starts when it is back."
_TOGETHER = 500  # events a transaction; listeners and other writers get their turn in between
_PAUSE = 19.0  # times what deciding took: with thousands of jobs waiting, requests still get most of the time
_FORESEEN = 100  # waiting jobs whose start is predicted


class Asks(msgspec.Struct, frozen=True):
    """What a job's model means for its place: why it runs on a CPU only when that is asked for, and its memory."""

    not_on_cpu: str | None = None
    needs: Needs | None = None


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at one moment: `now` on the monotonic clock, `at` in UTC.

    `up_since` is since when service and Redis were both up, None while they are not. `asks` says of each pending job
    what its model means for its place, `expected_s` how long a job will take from its next start on,
    `capacities` what each device could hold a moment ago.
    """

    jobs: Mapping[str, JobRecord]
    runners: Mapping[str, RunnerView]
    now: float
    at: datetime
    up_since: float | None
    is_redis_lost: bool = False
    asks: Mapping[str, Asks] = {}
    expected_s: Mapping[str, float | None] = {}
    capacities: Mapping[Key, int] = {}

    @property
    def present(self) -> list[RunnerView]:
        """The runners that can be told something."""
        return [view for view in self.runners.values() if self.is_present(view)]

    def is_present(self, view: RunnerView) -> bool:
        return self.up_since is not None and view.is_alive(self.now)

    @property
    def rooms(self) -> list[Room]:
        """The devices that take work, as they are now."""
        return rooms(self.present, self.jobs, self.at, self.expected_s, self.capacities)

    def waiting(self, job: JobRecord) -> Waiting:
        """What a pending job asks for."""
        asks = self.asks.get(job.job_id, Asks())
        waiting = waiting_for(job.job_id, job.spec, asks.not_on_cpu, asks.needs)
        return msgspec.structs.replace(waiting, since_s=since_s(job), expected_s=self.expected_s.get(job.job_id))


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting job as its owner is told: its turn from 1, why it waits, what it needs, in how many seconds it is
    likely to start, as far as anybody can tell."""

    job: JobRecord
    position: int
    priority: int
    reason: str | None
    needs: Needs
    starts_in_s: float | None


class State(msgspec.Struct, frozen=True):
    """Record this event."""

    event: Event


class CatchUp(msgspec.Struct, frozen=True):
    """Record what the attempt's journal has beyond the record, from the disk."""

    job: JobRecord


class Send(msgspec.Struct, frozen=True):
    """Tell the runner."""

    runner_id: str
    command: AnyCommand


Action = State | CatchUp | Send


def decide(situation: Situation, settings: Settings) -> list[Action]:
    """What to state and to send, in this order: about each job, about what runners hold needlessly, placements."""
    actions: list[Action] = []
    for job in situation.jobs.values():
        actions += (
            _about_placed(job, situation, settings) if job.status in PLACED else _about_idle(job, situation, settings)
        )
    for view in situation.present:
        actions += _unwanted(view, situation.jobs)
    return actions + _placements(situation, settings)


def _about_idle(job: JobRecord, situation: Situation, settings: Settings) -> list[Action]:
    """A job that no runner has."""
    if job.cancel_requested_at is not None:
        return [State(events.JobCancelled(**_envelope(job, situation)))]
    if job.status is Status.PAUSED and job.preempted_by is not None:
        return [State(events.ResumeRequested(**_envelope(job, situation)))]
    if _has_no_attempt_left(job, settings):
        detail = (
            f"The job was interrupted {job.interruptions} times and is not tried again. "
            f"The last time: {(job.waiting_reason or 'unknown').rstrip('.')}. Look into output.log of its last attempt."
        )
        failed = events.JobFailed(reason=FailureReason.TOO_MANY_ATTEMPTS, detail=detail, **_envelope(job, situation))
        return [State(failed)]
    return []


def _about_placed(job: JobRecord, situation: Situation, settings: Settings) -> list[Action]:
    """A job that a runner has, or should have."""
    view = situation.runners.get(job.runner_id or "")
    if _is_lost(view, situation, settings):
        cause = f"Runner {job.runner_id} was not heard for {settings.lease_s:g} s."
        return [CatchUp(job), State(events.JobInterrupted(cause=cause, **_envelope(job, situation)))]
    if view is None or not situation.is_present(view):
        return []
    held = _held(job, view)
    if held is not None and held.state == "finished" and held.last_n <= job.recorded_n:
        return [State(_end_unread(job, situation))]
    catch_up = [CatchUp(job)] if job.status is Status.RUNNING and held is None else []
    return [*catch_up, *(Send(view.runner_id, command) for command in _commands(job, view))]


def _end_unread(job: JobRecord, situation: Situation) -> Event:
    """The attempt is over and its last line says nothing that could be recorded: the job must not wait for more."""
    if job.cancel_requested_at is not None:
        return events.JobCancelled(**_envelope(job, situation))
    detail = (
        f"Attempt {job.attempt} ended, but the end of its journal could not be recorded. Look into events.jsonl and "
        "output.log of that attempt, then submit the job again."
    )
    return events.JobFailed(reason=FailureReason.INTERNAL, detail=detail, **_envelope(job, situation))


def _commands(job: JobRecord, view: RunnerView) -> Iterable[AnyCommand]:
    about: dict[str, Any] = {"job_id": job.job_id, "attempt": job.attempt}
    held = _held(job, view)
    if held is None:
        yield commands.Start(spec=job.spec, device=job.device or "cpu", recorded=job.recorded_before, **about)
    elif _is_behind(job, view):
        yield commands.Resend(from_n=job.recorded_n + 1, **about)
    if held is not None and held.state == "finished":  # it must be reported until its last line is recorded
        return
    if job.cancel_requested_at is not None:
        yield commands.Cancel(**about)
    elif job.pause_requested_at is not None and job.status is Status.RUNNING:
        yield commands.Pause(**about)


def _unwanted(view: RunnerView, jobs: Mapping[str, JobRecord]) -> Iterable[Action]:
    """Attempts the runner holds and nobody waits for: of ended or deleted jobs, of older attempts, of paused jobs."""
    for held in view.report.held:
        if not is_wanted(held, jobs):
            yield Send(view.runner_id, commands.Cancel(job_id=held.job_id, attempt=held.attempt))


def _placements(situation: Situation, settings: Settings) -> list[Action]:
    pending = _pending(situation, settings)
    if situation.up_since is None:
        return _waits(pending, [Wait(job_id, REDIS_AWAY) for job_id in pending if situation.is_redis_lost], situation)
    decisions = place([situation.waiting(job) for job in pending.values()], situation.rooms)
    places = [decision for decision in decisions if isinstance(decision, Place)]
    waits = [decision for decision in decisions if isinstance(decision, Wait)]
    placed: list[Action] = [
        State(
            events.JobPlaced(
                runner_id=goes.runner_id,
                device=named_together(goes.device_ids),
                reserved_bytes=goes.bytes,
                **_envelope(pending[goes.job_id], situation),
            )
        )
        for goes in places
    ]
    pauses: list[Action] = [
        State(events.PauseRequested(preempted_by=wait.job_id, **_envelope(situation.jobs[job_id], situation)))
        for wait in waits
        for job_id in wait.pauses
    ]
    return placed + pauses + _waits(pending, waits, situation)


def _pending(situation: Situation, settings: Settings) -> dict[str, JobRecord]:
    """The jobs that want a place."""
    return {
        job.job_id: job
        for job in situation.jobs.values()
        if job.status is Status.PENDING and job.cancel_requested_at is None and not _has_no_attempt_left(job, settings)
    }


def queue(situation: Situation, settings: Settings) -> list[Queued]:
    """The waiting jobs in their order, with what is likely to become of the first of them."""
    pending = list(_pending(situation, settings).values())
    waiting = sorted(map(situation.waiting, pending), key=lambda job: job.turn)
    free = situation.rooms
    starts_in_s = forecast.starts(waiting[:_FORESEEN], free)
    reasons = {found.job_id: found.reason for found in place(waiting, free) if isinstance(found, Wait)}
    return [
        Queued(
            job=situation.jobs[job.job_id],
            position=position,
            priority=job.priority,
            reason=reasons.get(job.job_id, situation.jobs[job.job_id].waiting_reason),
            needs=job.needs,
            starts_in_s=starts_in_s.get(job.job_id),
        )
        for position, job in enumerate(waiting, 1)
    ]


def _waits(pending: Mapping[str, JobRecord], waits: Iterable[Wait], situation: Situation) -> list[Action]:
    """A reason is stated when it is another than the one before."""
    return [
        State(events.JobWaiting(reason=wait.reason, **_envelope(pending[wait.job_id], situation)))
        for wait in waits
        if wait.reason != pending[wait.job_id].waiting_reason
    ]


def _is_lost(view: RunnerView | None, situation: Situation, settings: Settings) -> bool:
    """Silent for a whole lease in which service and Redis were up."""
    if situation.up_since is None:
        return False
    heard_at = situation.up_since if view is None else max(view.heard_at, situation.up_since)
    return situation.now - heard_at > settings.lease_s


def _is_behind(job: JobRecord, view: RunnerView) -> bool:
    """Lines are missing that two reports already spoke of; those of one report may still be on their way."""
    before = view.held_before(job.job_id, job.attempt)
    held = _held(job, view)
    return held is not None and before is not None and min(held.last_n, before.last_n) > job.recorded_n


def _held(job: JobRecord, view: RunnerView) -> Held | None:
    return view.held(job.job_id, job.attempt)


def _has_no_attempt_left(job: JobRecord, settings: Settings) -> bool:
    return job.status is Status.PENDING and job.interruptions >= settings.max_attempts


def _envelope(job: JobRecord, situation: Situation) -> dict[str, Any]:
    return {"job_id": job.job_id, "attempt": job.attempt, "at": situation.at}


class Reconciler:
    """Carries out what `decide` says, at every change and every `report_every_s`."""

    def __init__(self, settings: Settings, root: DataRoot, recorder: Recorder, bus: Bus) -> None:
        self.names = ModelNames(settings, root, recorder)
        self._settings = settings
        self._recorder = recorder
        self._bus = bus
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sent_at: dict[tuple[str, AnyCommand], float] = {}
        self._durations = Durations(recorder)
        self._capacities = Capacities()
        self._asks: dict[str, Asks] = {}
        self._awake_since = time.monotonic()
        self._last_pass = self._awake_since
        self._decided_in_s = 0.0

    async def start(self) -> None:
        self._recorder.on_change = self.wake
        self._awake_since = self._last_pass = time.monotonic()
        self._task = asyncio.create_task(self._run_forever(), name="reconciler")

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)

    def wake(self) -> None:
        """Something changed: look again now."""
        self._news.set()

    async def queue(self) -> list[Queued]:
        """The waiting jobs in their order."""
        situation = await self._situation()
        return await asyncio.to_thread(queue, situation, self._settings)

    def occupancy(self) -> list[Occupancy]:
        """The devices of all runners that were heard, with who is on them."""
        return occupancy(self._recorder.runners.values(), self._recorder.live, datetime.now(UTC))

    async def run(self) -> None:
        """Look once, and do what there is to do."""
        situation = await self._situation()
        began = time.monotonic()
        actions = decide(situation, self._settings)
        self._decided_in_s = time.monotonic() - began
        for action in actions:
            if isinstance(action, CatchUp):
                await self._record(action, action.job.job_id)
        await self._state([action for action in actions if isinstance(action, State)])
        await self._send([action for action in actions if isinstance(action, Send)])

    async def _state(self, stated: Sequence[State]) -> None:
        """Record events together; where that is refused, each by itself."""
        for begin in range(0, len(stated), _TOGETHER):
            together = stated[begin : begin + _TOGETHER]
            try:
                await self._recorder.commit(Write([(action.event, None) for action in together]))
            except Unavailable:
                raise
            except Exception:
                for action in together:
                    await self._record(action, action.event.job_id)

    async def _record(self, action: State | CatchUp, job_id: str) -> None:
        """What concerns one job; a fault of its own is logged, and keeps no other job waiting."""
        try:
            if isinstance(action, CatchUp):
                await self._recorder.catch_up(action.job)
            else:
                await self._recorder.commit(Write([(action.event, None)]))
        except Unavailable:
            raise
        except Exception:
            log.exception("reconcile.job_failed", job_id=job_id)

    async def _run_forever(self) -> None:
        while True:
            self._news.clear()
            with self._recorder.upkeep.of("reconciler", Unavailable, *UNREACHABLE):
                await self.run()
            await asyncio.sleep(min(_PAUSE * self._decided_in_s, self._settings.report_every_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.report_every_s):
                    await self._news.wait()

    async def _situation(self) -> Situation:
        now = time.monotonic()
        if now - self._last_pass > 2 * self._settings.report_every_s + self._settings.lease_s / 2:
            self._awake_since = now  # this process stood still: the runners spoke and it could not hear
        self._last_pass = now
        redis_up_since = self._recorder.up_since
        return Situation(
            jobs=dict(self._recorder.live),
            runners=dict(self._recorder.runners),
            now=now,
            at=datetime.now(UTC),
            up_since=None if redis_up_since is None else max(redis_up_since, self._awake_since),
            is_redis_lost=self._recorder.is_redis_lost,
            asks=await self._asked(),
            expected_s=await self._expected(),
            capacities=self._capacities.note(self.occupancy(), now),
        )

    async def _asked(self) -> Mapping[str, Asks]:
        """Of each pending job what its model means for its place; looked up once a job."""
        known = self._asks
        pending = [job for job in self._recorder.live.values() if job.status is Status.PENDING]
        self._asks = {
            job.job_id: known[job.job_id]
            if job.job_id in known
            else Asks(await self.names.why_not_on_cpu(job.spec), await self.names.needs(job.spec))
            for job in pending
        }
        return self._asks

    async def _expected(self) -> Mapping[str, float | None]:
        await self._durations.refresh()
        return {job.job_id: self._durations.expected_s(job) for job in self._recorder.live.values()}

    async def _send(self, sends: Sequence[Send]) -> None:
        """Send what was not sent a moment ago: a report that shows its effect takes as long."""
        by_runner: dict[str, list[AnyCommand]] = {}
        for send in sends:
            if self._is_due(send.runner_id, send.command):
                by_runner.setdefault(send.runner_id, []).append(send.command)
        for runner_id, wishes in by_runner.items():
            log.info("commands.sent", runner_id=runner_id, commands=[_name(wish) for wish in wishes])
            await self._bus.send(runner_id, wishes)

    def _is_due(self, runner_id: str, wish: AnyCommand) -> bool:
        """Whether a command was not sent within the last `report_every_s`; then it counts as sent now."""
        now = time.monotonic()
        self._sent_at = {key: at for key, at in self._sent_at.items() if now - at < self._settings.report_every_s}
        if (runner_id, wish) in self._sent_at:
            return False
        self._sent_at[runner_id, wish] = now
        return True


def _name(wish: AnyCommand) -> str:
    return f"{wish.__struct_config__.tag} {wish.job_id}.{wish.attempt}"
