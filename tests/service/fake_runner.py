"""A runner without work: it reports, takes commands and says on the bus what its script tells it to.

Load it by path (tests have no packages): see `tests/service/http/conftest.py`. A script is an async function of an
`Attempt`, one a kind; without one, a job of that kind completes at once with a plausible result.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from jobs import bus as streams
from jobs import commands, events, model_shapes, tasks
from jobs.commands import Cancel, Pause, Resend, Start
from jobs.events import Device, Held, RunnerReported
from jobs.results import (
    ConvertResult,
    EvaluateResult,
    ExportResult,
    FinetuneResult,
    GenerateResult,
    PlanResult,
    PrepareResult,
    Result,
    SplitResult,
    TokenCounts,
    ValidateResult,
)
from jobs.specs import Kind, Slot, Spec, kind_of

REPORT_EVERY_S = 0.1
CPU = Device(device_id="cpu", name="Fake CPU", slots={Slot.CPU: 4, Slot.GPU: 4})


class Attempt:
    """One attempt under way. `say` publishes an event of its journal."""

    def __init__(self, runner: "FakeRunner", start: Start) -> None:
        self.start = start
        self.spec: Any = start.spec
        self.job_id = start.job_id
        self.state = "queued"
        self.journal: list[bytes] = []
        self.cancelled = asyncio.Event()
        self.paused = asyncio.Event()
        self._runner = runner

    @property
    def held(self) -> Held:
        return Held(job_id=self.job_id, attempt=self.start.attempt, state=self.state, last_n=len(self.journal))

    async def say(self, kind: type[events.Event], **fields: Any) -> None:
        event = kind(n=len(self.journal) + 1, **self._envelope(), **fields)
        self.journal.append(events.encode(event))
        if isinstance(event, events.ATTEMPT_ENDED):
            self.state = "finished"
        await self._runner.bus.publish([self.journal[-1]])

    async def progress(self, step: int, total_steps: int, **fields: Any) -> None:
        done = {"step": step, "total_steps": total_steps, "fraction": step / total_steps} | fields
        await self._runner.bus.publish([events.encode(events.JobProgressed(**self._envelope(), **done))])

    async def begin(self) -> None:
        self.state = "running"
        await self.say(events.JobStarted, device=self.start.device, device_name="Fake CPU", runner_id=self._runner.name)

    async def complete(self, result: Result | None = None) -> None:
        await self.say(events.JobCompleted, result=result or default_result(self.job_id, self.spec))

    def _envelope(self) -> dict[str, Any]:
        return {"job_id": self.job_id, "attempt": self.start.attempt, "at": datetime.now(UTC)}


Script = Callable[[Attempt], Awaitable[None]]


class FakeRunner:
    """Use as an async context: it reports from its begin to its end."""

    def __init__(self, url: str, name: str = "fake", devices: tuple[Device, ...] = (CPU,)) -> None:
        self.name = name
        self.bus = streams.connect(url)
        self.scripts: dict[Kind, Script] = {}
        self.commands: list[commands.Command] = []
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self._devices = devices
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> "FakeRunner":
        after = await self.bus.commands_end(self.name)
        await self.report()
        self._spawn(self._report_often())
        self._spawn(self._obey(after))
        return self

    async def __aexit__(self, *_: object) -> None:
        while going_on := {task for task in self._tasks if not task.done()}:  # one that ends may have begun another
            await tasks.end(*going_on)
        await self.bus.close()

    async def report(self) -> None:
        held = tuple(attempt.held for attempt in self.attempts.values())
        report = RunnerReported(
            runner_id=self.name, boot="1", at=datetime.now(UTC), devices=self._devices, held=held, version="fake"
        )
        await self.bus.publish([events.encode(report)])

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            with suppress(*streams.UNREACHABLE):  # on a machine that is busy, answers come late
                await self.report()

    async def _obey(self, after: str) -> None:
        while True:
            wishes: list[commands.AnyCommand] = []
            with suppress(*streams.UNREACHABLE):
                after, wishes = await self.bus.read_commands(self.name, after, block_s=0.2)
            for wish in wishes:
                self.commands.append(wish)
                await self._do(wish)

    async def _do(self, wish: commands.Command) -> None:
        key = (wish.job_id, wish.attempt)
        attempt = self.attempts.get(key)
        if isinstance(wish, Start) and attempt is None:
            self.attempts[key] = Attempt(self, wish)
            self._spawn(self._execute(self.attempts[key]))
        elif isinstance(wish, Cancel) and attempt is not None and attempt.state == "finished":
            del self.attempts[key]
        elif isinstance(wish, Cancel) and attempt is not None:
            attempt.cancelled.set()
        elif isinstance(wish, Pause) and attempt is not None:
            attempt.paused.set()
        elif isinstance(wish, Resend) and attempt is not None:
            await self.bus.publish(attempt.journal[wish.from_n - 1 :])

    async def _execute(self, attempt: Attempt) -> None:
        script = self.scripts.get(kind_of(attempt.spec), run_at_once)
        working = self._spawn(script(attempt))
        stopping = self._spawn(attempt.cancelled.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.end(working, stopping)  # no harm to a script that has ended
        if attempt.cancelled.is_set() and attempt.state != "finished":
            await attempt.say(events.JobCancelled)

    def _spawn(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        return task


async def run_at_once(attempt: Attempt) -> None:
    """The script of a job that has nothing to do."""
    await attempt.begin()
    await attempt.complete()


async def run_until_stopped(attempt: Attempt) -> None:
    """The script of a job that ends only when it is cancelled."""
    await attempt.begin()
    await asyncio.Event().wait()


def default_result(job_id: str, spec: Spec) -> Result:
    """What a completed job of this kind plausibly answers."""
    values: Any = spec
    match kind_of(spec):
        case Kind.CONVERT:
            name, about = values.output_dir, f"About {values.model_name}." if values.model_name else ""
            return ConvertResult(
                output_dir=name, num_samples=3, message="3 samples", labels={"red": 3}, recommendation=about
            )
        case Kind.VALIDATE:
            return ValidateResult(
                passed=True, result="passed", num_errors=0, num_warnings=0, errors=(), warnings=(),
                statistics={"total_samples": 3, "total_checks": 1}, recommendations=(), report_id=job_id,
            )  # fmt: skip
        case Kind.SPLIT:
            paths = {f"{part}_path": f"{values.output_dir}/{part}.jsonl" for part in ("train", "val", "test")}
            return SplitResult(**paths, train_samples=1, val_samples=1, test_samples=1)
        case Kind.PREPARE:
            steps: list[Any] = [
                default_result(job_id, step) for step in (values.conversion, values.validation, values.division)
            ]
            return PrepareResult(
                output_dir=values.output_dir, num_samples=3, passed=True, message="prepared", success=True,
                convert=steps[0], validate=steps[1], split=steps[2],
            )  # fmt: skip
        case Kind.PLAN:
            shape: Any = model_shapes.known_shape(values.config.model_name) or model_shapes.known_shape("demo-llava")
            tokens = TokenCounts(
                looked_at=100, p50=640, p95=700, max=900, mean=650.0, image_max=576, images_max=1, trained_max=60,
                truncated=0,
            )  # fmt: skip
            return PlanResult(
                parameters=shape.parameters, trainable_parameters=shape.trainable(values.config), shape=shape, rows=100,
                tokens=tokens, steps=24, longest=4096,
            )  # fmt: skip
        case Kind.FINETUNE:
            return FinetuneResult(steps=4, final_train_loss=0.5, best_eval_loss=0.4, best_eval_accuracy=0.9)
        case Kind.EVALUATE:
            return EvaluateResult(
                rows=1, loss=0.1, label_accuracy=1.0, exact_match=1.0, constant_accuracy=0.3, grey_images=False
            )
        case Kind.GENERATE:
            return GenerateResult(answers=())
        case Kind.EXPORT:
            return ExportResult(
                export_id=job_id, job_id=values.job_id, export_path=f"exports/{job_id}/model",
                archive_path=f"exports/{job_id}/model.zip", archive_bytes=10, archive_sha256="0" * 64,
                export_format=values.export_format, file_size_mb=0.01, message="exported",
                model_card_path=f"exports/{job_id}/model/README.md",
            )  # fmt: skip
