"""How long a job will take, from what this service has seen: the basis of predicted starts, never of a promise.

`Reconciler` asks. Jobs of one kind, model, method and number of processes are taken to be alike; a step limit counts.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from jobs.lifecycle import Status
from jobs.specs import FinetuneSpec, slot_of
from service.ledger import Ledger
from service.records import JobRecord

_LOOKED_AT = 200  # completed jobs, the newest
_FRESH_S = 30.0

Alike = tuple[str, ...]


class Durations:
    """Medians of completed jobs, looked up again now and then."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._read_at = -_FRESH_S
        self._seconds: dict[Alike, float] = {}
        self._seconds_a_step: dict[Alike, float] = {}

    async def refresh(self) -> None:
        if time.monotonic() - self._read_at >= _FRESH_S:
            self._read_at = time.monotonic()
            self.learn(await self._ledger.completed(_LOOKED_AT))

    def learn(self, completed: Iterable[JobRecord]) -> None:
        seconds, a_step = defaultdict(list), defaultdict(list)
        for job in completed:
            if job.status is not Status.COMPLETED or job.duration_s is None:
                continue
            seconds[_alike(job)].append(job.duration_s)
            if job.total_steps:
                a_step[_alike(job)].append(job.duration_s / job.total_steps)
        self._seconds = {alike: median(values) for alike, values in seconds.items()}
        self._seconds_a_step = {alike: median(values) for alike, values in a_step.items()}

    def expected_s(self, job: JobRecord) -> float | None:
        """From its next start to its end; None when nothing like it was ever completed."""
        whole = self._seconds.get(_alike(job))
        steps = job.spec.config.max_steps if isinstance(job.spec, FinetuneSpec) else None
        each = self._seconds_a_step.get(_alike(job))
        if steps and each:
            whole = steps * each
        return None if whole is None else whole * (1 - (job.fraction or 0.0))


def _alike(job: JobRecord) -> Alike:
    if isinstance(job.spec, FinetuneSpec):
        config = job.spec.config
        return job.kind, config.model_name, config.method, str(config.num_processes)
    return job.kind, slot_of(job.spec)  # a plan with a probe is another thing than one without
