"""Lifecycle, placement, reconcile and recorder on a bus that drops, duplicates, reorders and delays, under a clock that
the machine moves: Hypothesis looks for a story in which something is lost, and makes it short.

The parts of the service are the real ones on a real SQLite; the runners are a page of model that keeps the rules of
the real ones: journals on the disk, published lines, reports, idempotent commands.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import invariants
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from plan import BASE, count
from world import Expected

from gpu_runner import journal
from jobs import commands, events, lifecycle, tasks
from jobs.bus import BEGINNING
from jobs.commands import AnyCommand
from jobs.events import Device, Held, RunnerReported
from jobs.paths import DataRoot
from jobs.results import FinetuneResult
from jobs.settings import Settings
from jobs.specs import FinetuneSpec, Slot
from jobs.training_config import TrainingConfig
from service import reconcile, recorder, records
from service.hub import Hub
from service.reconcile import Reconciler
from service.recorder import Recorder
from service.store import Store

LEASE_S = 15.0
SPEC = FinetuneSpec(config=TrainingConfig(model_name="demo-llava", train_data_path="datasets/r", device="cpu"))
RUNNERS = ("a", "b")
DEEDS = ("start", "work", "work", "complete", "fail", "interrupt")


class Bus:
    """What was sent is in flight until the machine delivers it, as often and in whatever order it likes."""

    def __init__(self, clock: "Clock") -> None:
        self.clock = clock
        self.word = 0
        self.stream: list[tuple[str, bytes]] = []
        self.said: list[bytes] = []
        self.wishes: list[tuple[str, AnyCommand]] = []
        self._count = 0

    def deliver(self, message: bytes) -> None:
        self._count += 1
        self.stream.append((f"{int(self.clock.now * 1000)}-{self._count}", message))

    def wipe(self) -> None:
        self.word += 1
        self.stream.clear()
        self.said.clear()
        self.wishes.clear()

    def take_wishes(self) -> list[tuple[str, AnyCommand]]:
        wishes, self.wishes = self.wishes, []
        return wishes

    # -- as `jobs.bus.Bus`

    async def epoch(self) -> str:
        return f"epoch-{self.word}"

    async def read_events(self, after: str, *, block_s: float = 1.0) -> list[tuple[str, bytes]]:
        return [(entry, message) for entry, message in self.stream if _order(entry) > _order(after)]

    async def clock_s(self) -> float:
        return self.clock.now

    async def send(self, runner_id: str, wishes: Iterable[AnyCommand]) -> None:
        self.wishes += [(runner_id, wish) for wish in wishes]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Runner:
    """Holds attempts; each has a journal on the disk, of which so many lines are published."""

    def __init__(self, name: str, root: DataRoot, bus: Bus) -> None:
        self.name = name
        self.boots = 1
        self.alive = True
        self.held: dict[tuple[str, int], Literal["queued", "running", "finished"]] = {}
        self._root = root
        self._bus = bus

    def report(self) -> None:
        held = tuple(
            Held(job_id=job_id, attempt=attempt, state=state, last_n=self._lines(job_id, attempt))
            for (job_id, attempt), state in self.held.items()
        )
        device = Device(device_id="cpu", name="model", slots={Slot.CPU: 1, Slot.GPU: 2})
        report = RunnerReported(
            runner_id=self.name, boot=str(self.boots), at=_now(), devices=(device,), held=held, version=""
        )
        self._bus.said.append(events.encode(report))

    def obey(self, wish: AnyCommand) -> None:
        key = wish.job_id, wish.attempt
        state = self.held.get(key)
        match wish:
            case commands.Start() if state is None:
                self._take_on(key)
            case commands.Cancel() if state == "finished":
                del self.held[key]
            case commands.Cancel() if state is not None:
                self.end(key, events.JobCancelled)
            case commands.Pause() if state == "running":
                self.end(key, events.JobPaused)
            case commands.Resend() if state is not None:
                self._bus.said += self._read(*key)[wish.from_n - 1 :]

    def start(self, key: tuple[str, int]) -> None:
        self.held[key] = "running"
        self._say(key, events.JobStarted, device="cpu", runner_id=self.name)

    def work(self, key: tuple[str, int]) -> None:
        step = self._lines(*key)
        self._say(key, events.MetricsLogged, step=step, values={"train_loss": 1 / step})

    def end(self, key: tuple[str, int], kind: type[events.Event], **fields: Any) -> None:
        self._say(key, kind, **fields)
        self.held[key] = "finished"

    def do_all(self) -> None:
        """Bring what it holds one step nearer to its end."""
        for key, state in list(self.held.items()):
            if state == "queued":
                self.start(key)
            elif state == "running":
                self.work(key)
                self.end(key, events.JobCompleted, result=FinetuneResult(steps=1))

    def die(self) -> None:
        self.alive = False

    def come_back(self) -> None:
        """Everything it held is over; what its journals lack is an interruption."""
        self.alive, self.boots = True, self.boots + 1
        for key in self.held:
            self.held[key] = "finished"
            if not journal.has_ended(self._root.attempt(*key).journal):
                self._say(key, events.JobInterrupted, cause="the runner was restarted")

    def _take_on(self, key: tuple[str, int]) -> None:
        if not self._root.attempt(*key).journal.exists():
            self._root.attempt(*key).folder.mkdir(parents=True, exist_ok=True)
            self._root.attempt(*key).journal.touch()
            self.held[key] = "queued"
            return
        self.held[key] = "finished"
        if not journal.has_ended(self._root.attempt(*key).journal):
            self._say(key, events.JobInterrupted, cause="the runner had let go of the attempt")

    def _say(self, key: tuple[str, int], kind: type[events.Event], **fields: Any) -> None:
        event = kind(job_id=key[0], attempt=key[1], at=_now(), n=self._lines(*key) + 1, **fields)
        with self._root.attempt(*key).journal.open("ab") as file:
            file.write(events.encode(event) + b"\n")
        self._bus.said.append(events.encode(event))

    def _read(self, job_id: str, attempt: int) -> list[bytes]:
        return self._root.attempt(job_id, attempt).journal.read_bytes().splitlines()

    def _lines(self, job_id: str, attempt: int) -> int:
        return journal.count_lines(self._root.attempt(job_id, attempt).journal)


class Machine(RuleBasedStateMachine):
    """The rules are what can happen; at the end the bus is healed and everything must come to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.root = DataRoot(self.folder)
        self.bus = Bus(self.clock)
        self.runners = {name: Runner(name, self.root, self.bus) for name in RUNNERS}
        self.settings = Settings(data_root=str(self.folder), lease_s=LEASE_S, report_every_s=2.0, max_attempts=4)
        self.accepted: list[str] = []
        self.loop = asyncio.new_event_loop()
        self._patched = pytest.MonkeyPatch()
        for module in (reconcile, recorder, records):
            self._patched.setattr(module, "time", SimpleNamespace(monotonic=self.clock.monotonic))
        self._run(self._open())

    def _run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _open(self) -> None:
        self.store = await Store.open(self.root.database)
        bus: Any = self.bus  # as much of `jobs.bus.Bus` as these two use
        self.recorder = Recorder(self.settings, self.root, self.store, Hub(), bus)
        self.reconciler = Reconciler(self.settings, self.root, self.recorder, bus)
        await self.recorder.open()
        self.recorder._position = await self.store.position()

    async def _close(self) -> None:
        assert self.recorder._writer is not None
        await tasks.end(self.recorder._writer)
        await self.store.close()

    @initialize(jobs=st.integers(1, 3), rounds=st.integers(0, 3))
    def begin_well(self, jobs: int, rounds: int) -> None:
        """Most stories begin with jobs that run: chance alone rarely comes that far."""
        for _ in range(jobs):
            self.submit()
        for _ in range(rounds):
            self.all_goes_well()

    # -- users

    @precondition(lambda self: len(self.accepted) < 4)
    @rule()
    def submit(self) -> None:
        job_id = f"job_{len(self.accepted)}"
        self._run(self.recorder.record([events.JobSubmitted(job_id=job_id, attempt=1, at=_now(), spec=SPEC)]))
        self.accepted.append(job_id)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), kind=st.sampled_from([events.CancelRequested, events.PauseRequested, events.ResumeRequested]))
    def steer(self, data: st.DataObject, kind: type[events.Event]) -> None:
        job_id = data.draw(st.sampled_from(self.accepted))
        record = self.recorder.live.get(job_id)
        if record is not None:
            self._run(self.recorder.record([kind(job_id=job_id, attempt=record.attempt, at=_now())]))

    # -- runners

    @rule(name=st.sampled_from(RUNNERS))
    def runner_reports(self, name: str) -> None:
        if self.runners[name].alive:
            self.runners[name].report()

    @rule(name=st.sampled_from(RUNNERS), deed=st.sampled_from(DEEDS))
    def runner_works(self, name: str, deed: str) -> None:
        runner = self.runners[name]
        wanted = "queued" if deed == "start" else "running"
        key = next((key for key, state in runner.held.items() if state == wanted), None)
        if not runner.alive or key is None:
            return
        match deed:
            case "start":
                runner.start(key)
            case "work":
                runner.work(key)
            case "complete":
                runner.end(key, events.JobCompleted, result=FinetuneResult(steps=1))
            case "fail":
                runner.end(key, events.JobFailed, reason="internal", detail="it broke")
            case "interrupt":
                runner.end(key, events.JobInterrupted, cause="a child was killed")

    @rule(name=st.sampled_from(RUNNERS))
    def runner_dies_or_comes_back(self, name: str) -> None:
        runner = self.runners[name]
        if runner.alive:
            runner.die()
        else:
            runner.come_back()

    # -- the bus

    @precondition(lambda self: self.bus.said)
    @rule(data=st.data(), what=st.sampled_from(["deliver", "deliver", "deliver", "drop", "twice"]))
    def event_in_flight(self, data: st.DataObject, what: str) -> None:
        place = data.draw(st.integers(0, min(3, len(self.bus.said) - 1)))
        message = self.bus.said[place] if what == "twice" else self.bus.said.pop(place)
        if what != "drop":
            self.bus.deliver(message)

    @rule()
    def events_arrive(self) -> None:
        while self.bus.said:
            self.bus.deliver(self.bus.said.pop(0))

    @precondition(lambda self: self.bus.wishes)
    @rule(data=st.data(), what=st.sampled_from(["deliver", "deliver", "deliver", "drop", "twice"]))
    def command_in_flight(self, data: st.DataObject, what: str) -> None:
        place = data.draw(st.integers(0, len(self.bus.wishes) - 1))
        name, wish = self.bus.wishes[place] if what == "twice" else self.bus.wishes.pop(place)
        if what != "drop" and self.runners[name].alive:
            self.runners[name].obey(wish)

    @rule()
    def redis_is_wiped(self) -> None:
        self.bus.wipe()

    # -- the service

    @rule()
    def service_listens(self) -> None:
        self._run(self.recorder._listen())

    @rule()
    def service_reconciles(self) -> None:
        self._run(self.reconciler.run())

    @rule()
    def service_is_killed_and_comes_back(self) -> None:
        self._run(self._close())
        self._run(self._open())

    @rule(seconds=st.sampled_from([0.5, 2.5, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def all_goes_well(self) -> None:
        """For once: everybody speaks, everything arrives, what is queued starts."""
        self.clock.now += 1.0
        for runner in self.runners.values():
            if runner.alive:
                runner.report()
                for key, state in list(runner.held.items()):
                    if state == "queued":
                        runner.start(key)
        self.events_arrive()
        self._run(self.recorder._listen())
        self._run(self.reconciler.run())
        for name, wish in self.bus.take_wishes():
            if self.runners[name].alive:
                self.runners[name].obey(wish)

    # -- what must hold

    @invariant()
    def every_step_was_allowed(self) -> None:
        for job_id in self.accepted:
            rows = invariants.rows_of(self, job_id)
            state = lifecycle.State()
            for row in rows[1:]:
                following = lifecycle.advance(state, row.event)
                assert following is not None, f"{row.type} is not allowed in {state}"
                state = following
            assert state.status == self.status(job_id)
            assert list(invariants.attempts_rise(self, Expected(job_id, set()), rows)) == []

    def teardown(self) -> None:
        try:
            self._heal()
            self._judge()
        finally:
            self._run(self._close())
            self.loop.close()
            self._patched.undo()
            shutil.rmtree(self.folder)

    def _heal(self) -> None:
        """Nothing gets lost any more, runners do their work: within so many rounds everything has ended."""
        if not any(runner.alive for runner in self.runners.values()):
            self.runners["a"].come_back()  # who is dead beside one that lives stays dead: its jobs must go on there
        alive = [runner for runner in self.runners.values() if runner.alive]
        for _ in range(80):
            self.clock.now += 1.0
            for record in list(self.recorder.live.values()):
                if record.status == "paused":
                    self._run(self.recorder.record([_resume(record)]))
            for runner in alive:
                runner.do_all()
                runner.report()
            while self.bus.said:
                self.bus.deliver(self.bus.said.pop(0))
            self._run(self.recorder._listen())
            self._run(self.reconciler.run())
            for name, wish in self.bus.take_wishes():
                if self.runners[name].alive:
                    self.runners[name].obey(wish)
            if not self.recorder.live and not any(runner.held for runner in alive):
                return
        raise AssertionError(
            f"not at its end: {list(self.recorder.live.values())}, "
            f"held: {[(runner.name, runner.held) for runner in self.runners.values()]}"
        )

    def _judge(self) -> None:
        for job_id in self.accepted:
            expected = Expected(job_id, {"completed", "failed", "cancelled"})
            rows = invariants.rows_of(self, job_id)
            wrong = list(invariants.one_terminal_state(self, expected, rows))
            wrong += invariants.journals_agree(self, expected, rows)
            assert not wrong, wrong

    # -- what `invariants` asks of a world

    def rows(self, sql: str, *values: object) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{self.root.database}?mode=ro", uri=True)) as database:
            return database.execute(sql, values).fetchall()

    def status(self, job_id: str) -> str:
        return str(self.rows("SELECT status FROM jobs WHERE job_id = ?", job_id)[0][0])


def _resume(record: records.JobRecord) -> events.Event:
    return events.ResumeRequested(job_id=record.job_id, attempt=record.attempt, at=_now())


def _order(entry: str) -> tuple[int, int]:
    milliseconds, _, counter = entry.partition("-")
    return int(milliseconds), int(counter)


def _now() -> datetime:
    return datetime.now(UTC)


assert BEGINNING == "0-0"


@pytest.mark.timeout(7200)
def test_no_story_loses_a_job() -> None:
    run_state_machine_as_test(
        seed(int(BASE))(Machine),
        settings=settings(
            max_examples=count("machine"),
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
