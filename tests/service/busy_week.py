"""A played week of three GPUs: jobs come, grow, end, are paused, and decide what goes where is the real thing.

Used by `test_busy_week.py`. Time is simulated: a week takes seconds. A device counts what processes really hold of it;
a runner's report is as old as the last event, and what a job gives back shows a moment later.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs import events
from jobs.events import Device, Held, RunnerReported
from jobs.lifecycle import Status, advance
from jobs.settings import Settings
from jobs.specs import FinetuneSpec, Slot
from jobs.training_config import TrainingConfig
from jobs.values import devices_of
from service import projection
from service.occupancy import Capacities, occupancy, rooms
from service.reconcile import Asks, Situation, State, decide
from service.records import JobRecord, RunnerView
from service.rooms import Needs

GIB, HOUR = 2**30, 3600.0
WEEK = 7 * 24 * HOUR
BEGAN = datetime(2026, 1, 5, tzinfo=UTC)
SETTINGS = Settings()
GIVES_BACK_S, SAVES_S, GROWS_S = 3.0, 30.0, 600.0

DEVICES = {
    "a": (("cuda:0", 24), ("cuda:1", 24)),
    "b": (("cuda:0", 48),),
}


@dataclass
class Job:
    """What only the world knows: how much it takes in truth, and how long."""

    job_id: str
    comes_s: float
    work_s: float
    needs: int | None
    takes: int  # never more than `needs`
    expected_s: float | None
    priority: int
    preemptible: bool
    processes: int = 1
    left_s: float = 0.0
    since_s: float = 0.0
    place: tuple[str, str] | None = None
    queued_s: float = 0.0
    waited_s: float = 0.0
    first_start_s: float | None = None
    ended_s: float | None = None
    pauses: int = 0

    @property
    def devices(self) -> list[tuple[str, str]]:
        """Where it is; what it needs, takes and holds is of each."""
        return [] if self.place is None else [(self.place[0], device) for device in devices_of(self.place[1])]

    def holds(self, now: float) -> int:
        """It takes a third at once and the rest later: a measurement at its begin proves nothing."""
        return self.takes if now - self.since_s > GROWS_S else self.takes // 3


def week_of_jobs(seed: int, jobs_a_day: float = 42.0) -> list[Job]:
    """Many small jobs, some large ones, most of them by day."""
    chance = random.Random(seed)
    made: list[Job] = []
    now = 0.0
    while True:
        hour = (now / HOUR) % 24
        now += chance.expovariate(jobs_a_day * (1.6 if 8 <= hour < 20 else 0.4) / (24 * HOUR))
        if now > WEEK:
            return made
        sort = chance.random()
        if sort < 0.65:  # LoRA on small models
            gib, hours = chance.uniform(3, 6), chance.uniform(0.5, 6)
        elif sort < 0.87:  # QLoRA on 7B
            gib, hours = chance.uniform(7, 12), chance.uniform(2, 10)
        elif sort < 0.90:  # LoRA on 7B: a whole 24 GiB device, nearly
            gib, hours = chance.uniform(18, 22), chance.uniform(4, 12)
        else:  # LoRA on 13B: only the largest device holds it
            gib, hours = chance.uniform(28, 44), chance.uniform(4, 10)
        needs = int(gib * GIB)
        is_known = chance.random() > 0.03
        guess = hours * HOUR * chance.lognormvariate(0, 0.5)
        made.append(
            Job(
                job_id=f"j{len(made)}",
                comes_s=now,
                work_s=hours * HOUR,
                needs=needs if is_known else None,
                takes=int(needs * chance.uniform(0.6, 1)) if is_known else int(min(gib, 19) * GIB),
                expected_s=None if chance.random() < 0.3 else guess,
                priority=chance.choices((-1, 0, 1, 5), (10, 75, 10, 5))[0],
                preemptible=chance.random() < 0.25,
            )
        )


@dataclass
class World:
    """Plays jobs against a policy. `used` adds up bytes times seconds of real use."""

    jobs: list[Job]
    until_s: float = WEEK
    now: float = 0.0
    used: float = 0.0
    records: dict[str, JobRecord] = field(default_factory=dict)
    lingering: list[tuple[float, tuple[str, str], int]] = field(default_factory=list)
    reasons: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_id = {job.job_id: job for job in self.jobs}
        self._capacities = Capacities()
        self._seq = itertools.count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._asks = {job.job_id: Asks(None, Needs(job.needs, job.needs)) for job in self.jobs}
        self._total = {(runner, device): gib * GIB for runner, devices in DEVICES.items() for device, gib in devices}
        for job in self.jobs:
            job.left_s, job.queued_s = job.work_s, job.comes_s
            self._at(job.comes_s, lambda job=job: self._comes(job))

    @property
    def capacity(self) -> int:
        return sum(self._total.values())

    @property
    def longest_wait_s(self) -> float:
        return max(job.waited_s for job in self.jobs)

    @property
    def share(self) -> float:
        """Of the devices' memory, the part that was in use until `until_s`."""
        return self.used / (self.capacity * self.until_s)

    def play(self, policy: "Policy") -> None:
        """Until nothing happens any more."""
        while self._agenda:
            at, _, happens = heapq.heappop(self._agenda)
            self.now = at
            happens()
            self._check()
            policy(self)
            self._check()

    # -- what happens

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._seq), happens))

    def _comes(self, job: Job) -> None:
        config = TrainingConfig(
            model_name="m",
            train_data_path="d",
            device="cuda",
            priority=job.priority,
            preemptible=job.preemptible,
            num_processes=job.processes,
        )
        event = events.JobSubmitted(spec=FinetuneSpec(config=config), **self._about(job, attempt=1))
        self.records[job.job_id] = projection.begin(event, next(self._seq))

    def say(self, kind: type[events.Event], job: Job, **fields: Any) -> None:
        record = self.records[job.job_id]
        self.take(kind(**self._about(job, record.attempt), **fields))

    def take(self, event: events.Event) -> None:
        """What the recorder does with an event, then what the world makes of it."""
        record, job = self.records[event.job_id], self._by_id[event.job_id]
        state = advance(record.state, event)
        assert state is not None, event
        self.records[event.job_id] = projection.follow(record, event, state, next(self._seq))
        if isinstance(event, events.JobPlaced):
            self._starts(job, (event.runner_id, event.device))
        elif isinstance(event, events.PauseRequested):
            job.pauses += 1
            attempt = self.records[job.job_id].attempt
            self._at(self.now + SAVES_S, lambda: self._pauses(job, attempt))
        elif isinstance(event, events.JobWaiting):
            self.reasons.setdefault(job.job_id, set()).add(event.reason)

    def _starts(self, job: Job, place: tuple[str, str]) -> None:
        record = self.records[job.job_id]
        job.waited_s += self.now - job.queued_s
        job.first_start_s = self.now if job.first_start_s is None else job.first_start_s
        job.place, job.since_s = place, self.now
        self.say(events.JobStarted, job, device=place[1])
        attempt = record.attempt
        self._at(self.now + GROWS_S + 1, lambda: None)  # a report shows what it has grown to
        self._at(self.now + job.left_s, lambda: self._ends(job, attempt))

    def _ends(self, job: Job, attempt: int) -> None:
        if job.place is None or self.records[job.job_id].attempt != attempt:
            return  # it was paused meanwhile
        self._leaves(job)
        job.ended_s = self.now
        del self.records[job.job_id]

    def _pauses(self, job: Job, attempt: int) -> None:
        record = self.records.get(job.job_id)
        if record is None or record.attempt != attempt or job.place is None:
            return  # it ended first
        job.left_s -= self.now - job.since_s
        self._leaves(job)
        job.queued_s = self.now
        self.say(events.JobPaused, job)

    def _leaves(self, job: Job) -> None:
        assert job.place is not None
        held_s = min(self.now, self.until_s) - min(job.since_s, self.until_s)
        self.used += job.takes * held_s * len(job.devices)
        self.lingering += [(self.now + GIVES_BACK_S, device, job.holds(self.now)) for device in job.devices]
        self._at(self.now + GIVES_BACK_S, lambda: None)
        job.place = None

    # -- what is seen

    def held_on(self, place: tuple[str, str]) -> int:
        """Bytes that are really held of a device, by those who have not given back too."""
        self.lingering = [each for each in self.lingering if each[0] > self.now]
        here = (job.holds(self.now) for job in self.running if place in job.devices)
        return sum(here) + sum(size for _, where, size in self.lingering if where == place)

    @property
    def running(self) -> list[Job]:
        return [job for job_id in self.records if (job := self._by_id[job_id]).place is not None]

    def _check(self) -> None:
        """No device ever promises or holds more than it has."""
        promised = dict.fromkeys(self._total, 0)
        grown = dict.fromkeys(self._total, 0)
        for job in self.running:
            kept = self.records[job.job_id].reserved_bytes
            assert len(job.devices) == job.processes
            for device in job.devices:
                promised[device] += self._total[device] if kept is None else kept
                grown[device] += job.takes
        for place, total in self._total.items():
            gone = sum(size for at, where, size in self.lingering if where == place and at > self.now)
            assert promised[place] <= total, (self.now, place, promised[place] / GIB)
            assert grown[place] + gone <= total, (self.now, place, grown[place] / GIB, gone / GIB)

    def situation(self) -> Situation:
        views = {runner: self._view(runner) for runner in DEVICES}
        expected = {job_id: self._by_id[job_id].expected_s for job_id in self.records}
        return Situation(
            jobs=self.records,
            runners=views,
            now=self.now,
            at=self._time(),
            up_since=-100.0,
            asks=self._asks,
            expected_s=expected,
            capacities=self._capacities.note(occupancy(views.values(), self.records, self._time()), self.now),
        )

    def _view(self, runner: str) -> RunnerView:
        devices = tuple(
            Device(
                device_id=device,
                name="GPU",
                slots={Slot.GPU: 8},
                memory_total_bytes=gib * GIB,
                memory_free_bytes=gib * GIB - self.held_on((runner, device)),
            )
            for device, gib in DEVICES[runner]
        )
        held = tuple(
            Held(
                job_id=job.job_id,
                attempt=self.records[job.job_id].attempt,
                state="running",
                last_n=0,
                device=job.place[1],
                slot=Slot.GPU,
                memory_bytes=job.holds(self.now),
            )
            for job in self.running
            if job.place is not None and job.place[0] == runner
        )
        report = RunnerReported(runner_id=runner, boot="b", at=self._time(), devices=devices, held=held)
        return RunnerView(report=report, heard_at=self.now, lease_s=15)

    def _time(self) -> datetime:
        return BEGAN + timedelta(seconds=self.now)

    def _about(self, job: Job, attempt: int) -> dict[str, Any]:
        return {"job_id": job.job_id, "attempt": attempt, "at": self._time()}


Policy = Callable[[World], None]


def ours(world: World) -> None:
    """What the service does."""
    for action in decide(world.situation(), SETTINGS):
        if isinstance(action, State):
            world.take(action.event)


def plain_fifo(world: World) -> None:
    """In the order of submission, one job a device, and nobody passes who waits."""
    _in_order(world, jobs_a_device=1)


def sharing_fifo(world: World) -> None:
    """In the order of submission, as many a device as its memory holds, and nobody passes who waits."""
    _in_order(world, jobs_a_device=8)


def _in_order(world: World, jobs_a_device: int) -> None:
    for record in list(world.records.values()):
        if record.status is not Status.PENDING:
            continue
        situation = world.situation()
        needs = situation.asks[record.job_id].needs
        size = needs.cuda if needs else None
        for room in sorted(
            rooms(situation.present, world.records, situation.at), key=lambda room: room.free_bytes or 0
        ):
            whole = not room.tenants and room.free_bytes == room.device.memory_total_bytes
            if len(room.tenants) < jobs_a_device and (whole if size is None else size <= (room.free_bytes or 0)):
                break
        else:
            return
        about = {"job_id": record.job_id, "attempt": record.attempt, "at": situation.at}
        world.take(
            events.JobPlaced(runner_id=room.runner_id, device=room.device.device_id, reserved_bytes=size, **about)
        )
