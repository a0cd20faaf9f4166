"""What a runner says of itself: every few seconds, and at once after each change."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata

from gpu_runner import processes
from gpu_runner.attempts import Attempt, Attempts, Key
from gpu_runner.devices import Devices
from gpu_runner.publisher import Publisher
from jobs import events
from jobs.bus import Bus
from jobs.events import Device, Held, RunnerReported
from jobs.specs import Slot
from jobs.values import devices_of


class Reporter:
    """Publishes reports. `stopping` tells the service to send no more work."""

    def __init__(
        self, *, runner_id: str, every_s: float, bus: Bus, devices: Devices, attempts: Attempts, publisher: Publisher
    ) -> None:
        self._runner_id = runner_id
        self._every_s = every_s
        self._bus = bus
        self._devices = devices
        self._attempts = attempts
        self._publisher = publisher
        self._boot = secrets.token_hex(8)
        self._version = _version()
        self._news = asyncio.Event()
        self.stopping = False

    def changed(self) -> None:
        """The next report differs: it is due now."""
        self._news.set()

    async def until_due(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._every_s):  # wait_for of Python 3.11 may swallow a cancellation
                await self._news.wait()

    async def report(self) -> None:
        """Raises what `jobs.bus.UNREACHABLE` names."""
        self._news.clear()
        devices, memory = await asyncio.to_thread(self._measure, list(self._attempts))  # a driver may take its time
        report = RunnerReported(
            runner_id=self._runner_id,
            boot=self._boot,
            at=datetime.now(UTC),
            devices=devices,
            held=tuple(self._held(attempt, memory) for attempt in self._attempts),
            version=self._version,
            stopping=self.stopping,
        )
        await self._bus.publish([events.encode(report)])

    def _measure(self, attempts: Sequence[Attempt]) -> tuple[tuple[Device, ...], dict[Key, int]]:
        """The devices, and what work with a model holds of them; that first, so that memory taken in between counts
        twice rather than not at all."""
        leaders = {
            attempt.key: attempt.child.pid
            for attempt in attempts
            if attempt.child is not None and attempt.slot is Slot.GPU
        }
        sessions = processes.sessions(leaders.values())
        memory: dict[Key, int] = {}
        held: Counter[str] = Counter()
        for attempt in attempts:
            if attempt.key in leaders:
                pids = sessions[leaders[attempt.key]]
                found = {device: self._devices.held_by(device, pids) for device in devices_of(attempt.device)}
                known = {device: size for device, size in found.items() if size is not None}
                held.update(known)
                if known and len(known) == len(found):
                    memory[attempt.key] = min(known.values())
        return self._devices.read(held), memory

    def _held(self, attempt: Attempt, memory: Mapping[Key, int]) -> Held:
        """Of a running attempt only what is published counts: the rest is on its way and need not be sent again."""
        is_finished = attempt.state == "finished"
        last_n = attempt.last_n if is_finished else self._publisher.published_n(attempt)
        return Held(
            job_id=attempt.job_id,
            attempt=attempt.number,
            state=attempt.state,
            last_n=last_n,
            device=attempt.device,
            slot=attempt.slot if attempt.device else None,
            memory_bytes=memory.get(attempt.key),
        )


def _version() -> str:
    try:
        return metadata.version("training-api")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return ""
