"""What is free on each device: what runners report, less what is promised. Pure; `reconcile.py` and routes ask.

Memory is counted twice and the smaller answer is believed. By promise: the device's total less what is kept for each
job. By measure: what the runner found free, less what those jobs were promised and have not taken yet. So memory that
another program holds, or that a job that has ended did not give back, is nobody's until a report shows it free.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

import msgspec

from jobs.events import Device, Held
from jobs.lifecycle import Status
from jobs.specs import FinetuneSpec, PlanSpec, Slot, slot_of
from jobs.values import devices_of
from service.records import JobRecord, RunnerView
from service.rooms import Room, Tenant, turn_of

Key = tuple[str, str]
"""Runner and device."""

PLACED = (Status.QUEUED, Status.RUNNING)


_REMEMBERED_S = 60.0


class Occupant(msgspec.Struct, frozen=True, kw_only=True):
    """A job on a device, and what it holds of it as far as that is measured."""

    tenant: Tenant
    job_id: str
    measured_bytes: int | None


class Occupancy(msgspec.Struct, frozen=True, kw_only=True):
    """A device with who is on it. `free_bytes` is None where the device cannot tell."""

    runner_id: str
    device: Device
    occupants: tuple[Occupant, ...]

    @property
    def reserved_bytes(self) -> int:
        """What is kept for jobs, or already held by them."""
        total = self.device.memory_total_bytes or 0
        return sum(total if each.tenant.bytes is None else each.tenant.bytes for each in self.occupants)

    @property
    def free_bytes(self) -> int | None:
        total, found_free = self.device.memory_total_bytes, self.device.memory_free_bytes
        if total is None:
            return None
        promised = total - self.reserved_bytes
        if found_free is None:
            return max(0, promised)
        due = sum(_due(each, total) for each in self.occupants)
        return max(0, min(promised, found_free - due))

    @property
    def key(self) -> Key:
        return self.runner_id, self.device.device_id

    @property
    def capacity_bytes(self) -> int | None:
        """What jobs of ours could have of it together, as far as can be seen now."""
        free, total = self.free_bytes, self.device.memory_total_bytes
        return None if free is None or total is None else min(total, free + self.reserved_bytes)

    def room(self, capacity_bytes: int | None = None) -> Room:
        """What is free. `capacity_bytes` is what the device could hold a moment ago, if that was more."""
        taken = {slot: sum(each.tenant.slot is slot for each in self.occupants) for slot in Slot}
        free = {slot: max(0, count - taken[slot]) for slot, count in self.device.slots.items()}
        tenants = tuple(each.tenant for each in self.occupants)
        return Room(self.runner_id, self.device, free, self.free_bytes, tenants, capacity_bytes)


class Capacities:
    """The largest capacity of each device within the last minute.

    What a job gives back shows late. Who waits for most of a device must not lose its reservation for that moment,
    but must not keep others out for ever where another program holds what it needs.
    """

    def __init__(self) -> None:
        self._now: dict[Key, int] = {}
        self._fell: dict[Key, list[tuple[float, int]]] = {}  # when a capacity became less, and what it was until then

    def note(self, devices: Iterable[Occupancy], now: float) -> Mapping[Key, int]:
        """The capacities, with those of this moment; `now` is on the monotonic clock."""
        before, self._now = self._now, {}
        for device in devices:
            capacity = device.capacity_bytes
            if capacity is None:
                continue
            self._now[device.key] = capacity
            fell = [known for known in self._fell.get(device.key, []) if known[0] >= now - _REMEMBERED_S]
            fell += [(now, before[device.key])] if before.get(device.key, 0) > capacity else []
            self._fell[device.key] = fell
        return {key: max([capacity, *(was for _, was in self._fell[key])]) for key, capacity in self._now.items()}


def occupancy(
    views: Iterable[RunnerView],
    jobs: Mapping[str, JobRecord],
    at: datetime,
    expected_s: Mapping[str, float | None] | None = None,
) -> list[Occupancy]:
    """The devices of these runners, with what is placed on them whether or not a report shows it yet."""
    found = []
    for view in views:
        placed = [job for job in jobs.values() if job.status in PLACED and job.runner_id == view.runner_id]
        for device in view.devices:
            here = [
                _occupant(job, view, at, expected_s or {})
                for job in placed
                if device.device_id in devices_of(job.device or "")
            ]
            found.append(
                Occupancy(runner_id=view.runner_id, device=device, occupants=(*here, *_ending(view, device, jobs)))
            )
    return found


def rooms(
    views: Iterable[RunnerView],
    jobs: Mapping[str, JobRecord],
    at: datetime,
    expected_s: Mapping[str, float | None] | None = None,
    capacities: Mapping[Key, int] | None = None,
) -> list[Room]:
    """The devices that take work, less what is on them or promised."""
    taking = [view for view in views if not view.report.stopping]
    return [device.room((capacities or {}).get(device.key)) for device in occupancy(taking, jobs, at, expected_s)]


def is_wanted(held: Held, jobs: Mapping[str, JobRecord]) -> bool:
    """Whether somebody waits for what a runner holds: not for ended jobs, older attempts, paused jobs that said so."""
    job = jobs.get(held.job_id)
    if job is None or job.attempt != held.attempt:
        return False
    return job.status is not Status.PAUSED or held.last_n > job.recorded_n


def remaining_s(job: JobRecord, at: datetime, expected_s: float | None) -> float | None:
    """Seconds until a placed job will be gone: by what it says itself, else by what it was expected to take."""
    if job.eta_s is not None:
        return job.eta_s - (at - job.updated_at).total_seconds()
    if expected_s is None or job.running_since is None:
        return expected_s
    return expected_s - (at - job.running_since).total_seconds()


def _occupant(job: JobRecord, view: RunnerView, at: datetime, expected_s: Mapping[str, float | None]) -> Occupant:
    held = view.held(job.job_id, job.attempt)
    slot = slot_of(job.spec)
    measured = held.memory_bytes if held and held.memory_bytes is not None else job.peak_memory_bytes
    kept = job.reserved_bytes if slot is Slot.GPU else 0
    tenant = Tenant(
        job_id=job.job_id,
        slot=slot,
        bytes=None if kept is None else max(kept, (measured or 0) if slot is Slot.GPU else 0),
        turn=turn_of(priority_of(job), since_s(job)),
        priority=priority_of(job),
        remaining_s=remaining_s(job, at, expected_s.get(job.job_id)),
        may_pause=_may_pause(job),
        leaving=job.pause_requested_at is not None or job.cancel_requested_at is not None,
    )
    return Occupant(tenant=tenant, job_id=job.job_id, measured_bytes=measured)


def _ending(view: RunnerView, device: Device, jobs: Mapping[str, JobRecord]) -> Iterator[Occupant]:
    """What the runner still ends, an older attempt say. Where it does not say on which device, it counts on each; where
    it does not say how much it holds, it counts as all."""
    for held in view.report.held:
        is_elsewhere = held.device and device.device_id not in devices_of(held.device)
        if held.state == "finished" or is_elsewhere or is_wanted(held, jobs):
            continue
        for slot in device.slots if held.slot is None else (held.slot,):
            tenant = Tenant(
                job_id=f"{held.job_id}.{held.attempt}",
                slot=slot,
                bytes=held.memory_bytes if slot is Slot.GPU else 0,
                leaving=True,
            )
            yield Occupant(tenant=tenant, job_id=held.job_id, measured_bytes=held.memory_bytes)


def priority_of(job: JobRecord) -> int:
    return job.spec.config.priority if isinstance(job.spec, FinetuneSpec | PlanSpec) else 0


def since_s(job: JobRecord) -> float:
    """From when on its age counts, in seconds of UTC; a job that was interrupted or paused keeps its turn."""
    return job.submitted_at.timestamp()


def _may_pause(job: JobRecord) -> bool:
    if not (isinstance(job.spec, FinetuneSpec) and job.spec.config.preemptible and job.status is Status.RUNNING):
        return False
    return job.cancel_requested_at is None and job.pause_requested_at is None


def _due(occupant: Occupant, total: int) -> int:
    """What it was promised and has not taken yet."""
    kept = total if occupant.tenant.bytes is None else occupant.tenant.bytes
    return max(0, kept - (occupant.measured_bytes or 0))
