"""A device's room while jobs move in: who fits, who may pass, for whom it is kept. `placement` alone asks."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from jobs.specs import Slot
from service.rooms import Room, Tenant, Waiting

_MOSTLY = 0.8  # of a GPU, for a job of unknown size; the rest may be what shows pictures on a screen
_IN_TIME = 1.25  # a job that is to be gone in time is taken to last so much longer than expected


class _Kept(msgspec.Struct):
    """A reservation. Others may use `spare_slots` and `spare_bytes` beside it, or be gone before `begins_s`."""

    job: Waiting
    begins_s: float
    spare_slots: int
    spare_bytes: float


class Yard:
    """A room while jobs move in. Memory counts for work with a model only; infinite where nobody can tell it."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.kept: dict[Slot, _Kept] = {}
        self.is_cuda = room.device.is_cuda
        self._tenants = list(room.tenants)
        self._slots = dict(room.free)
        self._free = math.inf if room.free_bytes is None else float(room.free_bytes)
        self._capacity = min(self.total, self._free + sum(map(self._held, room.tenants)))

    @property
    def free(self) -> float:
        return max(0.0, self._free)

    @property
    def total(self) -> float:
        return self.room.device.memory_total_bytes or math.inf

    def has_slot(self, slot: Slot) -> bool:
        return self._slots.get(slot, 0) > 0

    def needs(self, job: Waiting) -> float:
        """Bytes; the whole capacity where the need is not known."""
        needs = self.known_needs(job)
        return self._capacity if needs is None else needs

    def known_needs(self, job: Waiting) -> int | None:
        return job.needs.cuda if self.is_cuda else job.needs.cpu

    def fits(self, job: Waiting) -> bool:
        if not self.has_slot(job.slot):
            return False
        if job.slot is Slot.CPU or math.isinf(self._free):
            return True
        if self.known_needs(job) is None:
            return not self._models() and self._is_mostly_free()
        return self.needs(job) <= self._free

    def lets_pass(self, job: Waiting) -> bool:
        """Whether nobody who waits for this device is delayed by the job."""
        kept = self.kept.get(job.slot)
        return kept is None or self._is_beside(job, kept) or self._is_in_time(job, kept)

    def crowding(self, job: Waiting) -> tuple[int, float, int]:
        """Smallest where the job should go: few others, and a device that is not larger than it must be."""
        room = 0.0 if math.isinf(self._free) else self._free - self.needs(job)
        taken = self.room.device.slots.get(job.slot, 0) - self._slots.get(job.slot, 0)
        return taken, room, -self._slots.get(job.slot, 0)

    def take(self, job: Waiting) -> int | None:
        """The job moves in; the bytes that are kept for it, None is the whole device."""
        needs = 0 if job.slot is Slot.CPU else self.known_needs(job)
        kept = self.kept.get(job.slot)
        if kept is not None and self._is_beside(job, kept):
            kept.spare_slots -= 1
            kept.spare_bytes -= self.needs(job)
        self._slots[job.slot] -= 1
        self._free -= 0 if math.isinf(self._free) else self._free if needs is None else needs
        self._tenants.append(
            Tenant(job_id=job.job_id, slot=job.slot, bytes=needs, turn=job.turn, remaining_s=job.expected_s)
        )
        return needs

    # -- keeping room

    def could_hold(self, job: Waiting) -> bool:
        """Whether it fits once nobody of ours is there; what other programs hold stays."""
        return self.needs(job) <= max(self._capacity, self.room.capacity_bytes or 0)

    def clears_by_pausing(self, job: Waiting) -> tuple[str, ...] | None:
        """The fewest jobs of lower priority that make room by pausing, lowest and youngest first: none where there is
        room, or will be when those are gone who were told to leave. None if it cannot be had so."""
        gone = {tenant.job_id for tenant in self._tenants if tenant.leaving}
        if self.fits(job) or (gone and self._fits_without(job, gone)):
            return ()
        willing = [
            tenant
            for tenant in self._tenants
            if tenant.may_pause and not tenant.leaving and tenant.slot is job.slot
            if tenant.priority < job.priority and tenant.turn > job.turn  # else it would come first again
        ]
        pauses: list[str] = []
        for tenant in sorted(willing, key=lambda tenant: (tenant.priority, -tenant.turn)):
            pauses.append(tenant.job_id)
            if self._fits_without(job, gone | set(pauses)):
                return tuple(pauses)
        return None

    def delay(self, job: Waiting) -> tuple[bool, float, float]:
        """Smallest where the job should wait: where nobody who passed it may stay for ever, then where it can start
        earliest. The first keeps a reservation where it is although estimates change."""
        passed = sum(self._held(tenant) for tenant in self._after(job) if math.isinf(tenant.ends_s))
        return self.needs(job) + passed > self._capacity, self.begins_s(job), -self._free

    def expect_to_leave(self, pauses: Sequence[str]) -> None:
        """These jobs are told to pause."""
        self._tenants = [
            msgspec.structs.replace(tenant, leaving=True) if tenant.job_id in pauses else tenant
            for tenant in self._tenants
        ]

    def keep(self, job: Waiting, begins_s: float) -> None:
        """From now on nobody may delay the job here. `begins_s` is when it can begin: here, and wherever else it must
        begin with it."""
        _, slots_then, bytes_then = self._beginning(job)
        after = self._after(job)
        slots = self.room.device.slots.get(job.slot, 0) - 1 - len(after)
        beside = self._capacity - self.needs(job) - sum(map(self._held, after))
        self.kept[job.slot] = _Kept(job, begins_s, min(slots, slots_then), min(beside, bytes_then))

    def begins_s(self, job: Waiting) -> float:
        """In how many seconds the job fits when all end as expected, infinite if nobody can tell."""
        return self._beginning(job)[0]

    def _beginning(self, job: Waiting) -> tuple[float, int, float]:
        """That, and the slots and bytes that are left beside it then, without limit if nobody can tell."""
        if self.fits(job):
            return 0.0, self._slots[job.slot] - 1, self._free - self.needs(job)
        gone: set[str] = set()
        for ends_s, tenant in sorted((tenant.ends_s, tenant.job_id) for tenant in self._tenants):
            if math.isinf(ends_s):
                break
            gone.add(tenant)
            if self._fits_without(job, gone):
                slots, free = self._without(job.slot, gone)
                return ends_s, slots - 1, free - self.needs(job)
        return math.inf, self.room.device.slots.get(job.slot, 0), math.inf

    def _is_beside(self, job: Waiting, kept: _Kept) -> bool:
        if job.slot is Slot.CPU:
            return kept.spare_slots > 0
        return kept.spare_slots > 0 and self.known_needs(job) is not None and self._spares(job, kept)

    def _spares(self, job: Waiting, kept: _Kept) -> bool:
        return math.isinf(self._capacity) or self.needs(job) <= kept.spare_bytes

    def _is_in_time(self, job: Waiting, kept: _Kept) -> bool:
        if job.expected_s is None or math.isinf(kept.begins_s):
            return False
        return job.expected_s * _IN_TIME <= kept.begins_s

    # -- who is there

    def _models(self) -> list[Tenant]:
        return [tenant for tenant in self._tenants if tenant.slot is Slot.GPU]

    def _after(self, job: Waiting) -> list[Tenant]:
        """Those who passed the job, or will pass it."""
        return [tenant for tenant in self._tenants if tenant.slot is job.slot and tenant.turn > job.turn]

    def _is_mostly_free(self) -> bool:
        """A GPU that others use as well is not given to a job of unknown size; the host's memory always is shared."""
        total = self.room.device.memory_total_bytes
        return not self.room.device.is_cuda or total is None or self._free >= _MOSTLY * total

    def _held(self, tenant: Tenant) -> float:
        if tenant.slot is Slot.CPU:
            return 0.0
        total = self.room.device.memory_total_bytes
        return float(total or 0) if tenant.bytes is None else tenant.bytes

    def _without(self, slot: Slot, gone: Iterable[str]) -> tuple[int, float]:
        """Slots and bytes that are free when those are gone."""
        left = [tenant for tenant in self._tenants if tenant.job_id not in gone]
        slots = self._slots.get(slot, 0) + sum(tenant.slot is slot for tenant in self._tenants if tenant.job_id in gone)
        return slots, self._capacity - sum(map(self._held, left))

    def _fits_without(self, job: Waiting, gone: Iterable[str]) -> bool:
        slots, free = self._without(job.slot, gone)
        return slots > 0 and (job.slot is Slot.CPU or self.needs(job) <= free)
