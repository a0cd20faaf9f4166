"""A runner without work, for `live`: it reports, takes what it is given, and logs metrics at a rate.

What it says are the events of a real training, with the time they were said; their `step` counts over all its jobs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from jobs import bus as streams
from jobs import events, tasks
from jobs.commands import Start
from jobs.events import Device, Held, JobNoted, MetricsLogged, RunnerReported
from jobs.specs import Slot

NAME = "bench"
_REPORT_EVERY_S = 2.0

Publish = Callable[[Sequence[bytes]], Awaitable[None]]


class Source:
    """Use as an async context: it reports from its begin to its end."""

    def __init__(self, redis_url: str, jobs: int) -> None:
        self.bus = streams.connect(redis_url)
        self._jobs = jobs
        self._lines: dict[str, int] = {}  # job → the last line of its journal
        self._all_started = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Source":
        self._tasks = [asyncio.create_task(self._report_often()), asyncio.create_task(self._obey())]
        return self

    async def __aexit__(self, *_: object) -> None:
        await tasks.end(*self._tasks)
        await self.bus.close()

    async def all_started(self) -> None:
        """Return once it has been given all its jobs."""
        await asyncio.wait_for(self._all_started.wait(), 30)

    async def log_metrics(self, publish: Publish, count: int, rate: float, *, note_every: int = 0) -> None:
        """Say so many events, evenly spread over the jobs and over time; every so many of them is a note."""
        loop, jobs = asyncio.get_running_loop(), list(self._lines)
        began, said = loop.time(), 0
        while said < count:
            await asyncio.sleep(began + said / rate - loop.time())
            due = min(count, int((loop.time() - began) * rate) + 1)
            steps = range(said + 1, due + 1)
            notes = {step for step in steps if note_every and step % note_every == 0}
            await publish(
                [(self._note if step in notes else self._metrics)(jobs[step % len(jobs)], step) for step in steps]
            )
            said = due

    def _metrics(self, job_id: str, step: int) -> bytes:
        values: dict[str, float | None] = {
            "train_loss": 1 / step,
            "learning_rate": 2e-4,
            "grad_norm": 0.731,
            "samples_per_s": 412.5,
        }
        return events.encode(MetricsLogged(step=step, epoch=step / 1000, values=values, **self._envelope(job_id)))

    def _note(self, job_id: str, step: int) -> bytes:
        return events.encode(JobNoted(message=f"Step {step} was as good as any.", **self._envelope(job_id)))

    def _envelope(self, job_id: str) -> dict[str, Any]:
        self._lines[job_id] = self._lines.get(job_id, 0) + 1
        return {"job_id": job_id, "attempt": 1, "n": self._lines[job_id], "at": datetime.now(UTC)}

    async def _report_often(self) -> None:
        device = Device(device_id="cpu", name="none", slots={Slot.CPU: self._jobs, Slot.GPU: self._jobs})
        while True:
            held = tuple(Held(job_id=job, attempt=1, state="running", last_n=n) for job, n in self._lines.items())
            report = RunnerReported(runner_id=NAME, boot="1", at=datetime.now(UTC), devices=(device,), held=held)
            await self.bus.publish([events.encode(report)])
            await asyncio.sleep(_REPORT_EVERY_S)

    async def _obey(self) -> None:
        after = streams.BEGINNING
        while True:
            after, wishes = await self.bus.read_commands(NAME, after)
            for wish in wishes:
                if isinstance(wish, Start) and wish.job_id not in self._lines:
                    started = events.JobStarted(device="cpu", runner_id=NAME, **self._envelope(wish.job_id))
                    await self.bus.publish([events.encode(started)])
            if len(self._lines) == self._jobs:
                self._all_started.set()
