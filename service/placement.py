"""Which job goes to which runner and device: a pure function, asked by `reconcile.py`, `forecast.py` and `dispatch.py`.

A job gets a device that has a slot and the memory it needs, or a team of them on one host, a GPU for each of its
processes; higher priority first, then the older job, where a day of waiting counts as much as a point of priority.
What fits may pass what does not, but the first that does not fit keeps a reservation: nothing that came after it may
delay it. Nothing here trusts an estimate of time for that: a job passes because it fits *beside* the waiting one, or
because it will be gone before the waiting one could start at all.

Source: backfilling with one reservation: D. Lifka, "The ANL/IBM SP scheduling system" (1995), called EASY.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import le
from typing import Any

import msgspec

from jobs.events import Device
from jobs.specs import FinetuneSpec, JobSpec, PlanSpec, Slot, slot_of

NO_RUNNER = "No runner is connected. Start one with `training-api runner`."
TOO_LARGE_FOR_CPU = (
    "The model needs a CUDA device; no connected runner has one. "
    "Start a runner on a GPU host, or cancel and send device: cpu."
)
SIZE_UNKNOWN = (
    "The size of this hub model is not known here and no connected runner has a CUDA device; on a CPU it might take "
    "weeks. Start a runner on a GPU host, or cancel and send device: cpu, or the path of a local folder as the model."
)
NO_CPU_FOR_MODELS = (
    "The job asks for device: cpu, and no connected runner takes work with a model on its CPU. "
    "Start a runner on a host without a GPU, or cancel and send device: auto."
)
NO_DATA_WORK = "No connected runner takes data work. Start one with `training-api runner`."
NO_MODEL_WORK = "No connected runner takes work with a model. Start one with `training-api runner`."

_POINT_S = 86_400.0  # a point of priority is a head start of a day, so that the lowest job comes to its turn as well
_MOSTLY = 0.8  # of a GPU, for a job of unknown size; the rest may be what shows pictures on a screen
_IN_TIME = 1.25  # a job that is to be gone in time is taken to last so much longer than expected
_EXPLAINED = 10  # jobs that are told what is free now; those behind them need not hear of each change
_LISTED = 3  # devices in a reason
_GIB = 2**30


class Needs(msgspec.Struct, frozen=True):
    """Bytes of device memory by sort of device; None: not known, so the job gets a device for itself alone."""

    cuda: int | None = None
    cpu: int | None = None


NOTHING = Needs(0, 0)
"""Of data work, which the host's memory is there for."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A job without a place. `wish` is auto, cpu or cuda; `not_on_cpu` says why a CPU must be asked for.

    `since_s` is when it began to wait, `expected_s` how long it will take; None where nobody can tell. `processes`
    need a GPU each, all of one host; a CPU they share. `needs` are of one device.
    """

    job_id: str
    slot: Slot
    wish: str = "auto"
    not_on_cpu: str | None = None
    priority: int = 0
    needs: Needs = Needs()
    processes: int = 1
    since_s: float = 0.0
    expected_s: float | None = None

    @property
    def turn(self) -> float:
        return turn_of(self.priority, self.since_s)


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A job on a device. `bytes` are kept for it; None is the whole device.

    `remaining_s` is None where nobody can tell. `may_pause`: it saves its state and goes when a higher priority asks
    for its device; `leaving`: it was told to.
    """

    job_id: str
    slot: Slot
    bytes: int | None
    turn: float = -math.inf
    priority: int = 0
    remaining_s: float | None = None
    may_pause: bool = False
    leaving: bool = False

    @property
    def ends_s(self) -> float:
        """When it will be gone, infinite if nobody can tell; who is over time may stay for ever."""
        if self.leaving:
            return 0.0
        return self.remaining_s if self.remaining_s is not None and self.remaining_s > 0 else math.inf


class Room(msgspec.Struct, frozen=True):
    """A device that takes work: how many slots of each sort nobody occupies, and how much memory nobody holds or is
    promised; None where the device cannot tell. `capacity_bytes` is what it could hold a moment ago without any job of
    ours."""

    runner_id: str
    device: Device
    free: Mapping[Slot, int]
    free_bytes: int | None = None
    tenants: tuple[Tenant, ...] = ()
    capacity_bytes: int | None = None

    @property
    def name(self) -> str:
        return f"{self.device.device_id} of {self.runner_id}"


class Place(msgspec.Struct, frozen=True):
    """The job goes there, and so much memory of each device is kept for it; None is the whole device."""

    job_id: str
    runner_id: str
    device_ids: tuple[str, ...]
    bytes: int | None = 0


class Wait(msgspec.Struct, frozen=True):
    """The job waits; `reason` is a sentence for its owner. The jobs of `pauses` are to make room for it."""

    job_id: str
    reason: str
    pauses: tuple[str, ...] = ()


Decision = Place | Wait


def turn_of(priority: int, since_s: float) -> float:
    """The order of jobs, smaller first. It never changes while both wait, so nobody is overtaken for ever."""
    return since_s - priority * _POINT_S


def waiting_for(job_id: str, spec: JobSpec, not_on_cpu: str | None, needs: Needs | None = None) -> Waiting:
    """What a job's spec asks of a device."""
    asking = spec.config if isinstance(spec, FinetuneSpec | PlanSpec) else spec
    slot = slot_of(spec)
    return Waiting(
        job_id=job_id,
        slot=slot,
        wish=getattr(asking, "device", "auto"),
        not_on_cpu=not_on_cpu,
        priority=getattr(asking, "priority", 0),
        needs=NOTHING if slot is Slot.CPU else needs or Needs(),
        processes=spec.config.num_processes if isinstance(spec, FinetuneSpec) else 1,
    )


def place(waiting: Iterable[Waiting], rooms: Sequence[Room]) -> list[Decision]:
    """A decision for every job; `waiting` is in the order of submission."""
    return _Round(rooms).decide(sorted(waiting, key=lambda job: job.turn))  # sorted keeps the age among equals


class _Round:
    """One look at all jobs in their order."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._yards = [_Yard(room) for room in rooms]
        self._waits = 0
        self._least: dict[tuple[object, ...], list[tuple[float, ...]]] = {}  # what was asked for in vain, by wish

    def decide(self, jobs: Iterable[Waiting]) -> list[Decision]:
        return [self._decide(job) for job in jobs]

    def _decide(self, job: Waiting) -> Decision:
        suited = self._suited(job)
        if isinstance(suited, str):
            return Wait(job.job_id, suited)
        if not self._is_in_vain(job):
            open_ = [yard for yard in suited if yard.fits(job) and yard.lets_pass(job)]
            teams = _teams(job, open_, lambda yard: yard.crowding(job))
            if teams:
                return _move_in(job, min(teams, key=lambda team: [yard.crowding(job) for yard in team]))
            self._note_in_vain(job)
        self._waits += 1
        reason = _why(job, suited) if self._waits <= _EXPLAINED else _behind(job, suited)
        return Wait(job.job_id, reason, self._reserve(job, suited))

    def _is_in_vain(self, job: Waiting) -> bool:
        """Whether one that asked for less found nothing: with thousands that wait, most need no look at the devices."""
        asks = _asks(job)
        return any(all(map(le, less, asks)) for less in self._least.get(_wish(job), ()))

    def _note_in_vain(self, job: Waiting) -> None:
        asks, known = _asks(job), self._least.setdefault(_wish(job), [])
        known[:] = [less for less in known if not all(map(le, asks, less))]
        known.append(asks)

    def _suited(self, job: Waiting) -> "list[_Yard] | str":
        """The devices that take such a job when they are free, or why there is none."""
        if not self._yards:
            return NO_RUNNER
        able = [yard for yard in self._yards if yard.room.device.slots.get(job.slot, 0) > 0]
        if job.slot is Slot.CPU:
            return able or NO_DATA_WORK
        cuda = [yard for yard in able if yard.is_cuda]
        cpu = [yard for yard in able if not yard.is_cuda]
        if job.wish == "cpu":
            return cpu or NO_CPU_FOR_MODELS
        if cuda:
            return cuda if _teams(job, cuda, lambda yard: yard.room.name) else _too_few(job, cuda)
        return job.not_on_cpu or cpu or NO_MODEL_WORK

    def _reserve(self, job: Waiting, suited: "Sequence[_Yard]") -> tuple[str, ...]:
        """Keep room for the first of those that ask for the same devices; the jobs that are to pause for it."""
        if any(job.slot in yard.kept for yard in suited):
            return ()
        able = [yard for yard in suited if yard.could_hold(job)]
        pausing = {yard.room.name: pauses for yard in able if (pauses := yard.clears_by_pausing(job)) is not None}
        clear = _teams(
            job, [yard for yard in able if yard.room.name in pausing], lambda yard: len(pausing[yard.room.name])
        )
        if clear:
            together = [
                tuple(dict.fromkeys(each for yard in team for each in pausing[yard.room.name])) for team in clear
            ]
            pauses, team = min(zip(together, clear, strict=True), key=lambda found: len(found[0]))
        else:
            pauses, team = (
                (),
                min(
                    _teams(job, able, lambda yard: yard.delay(job)),
                    key=lambda team: max(yard.delay(job) for yard in team),
                    default=[],
                ),
            )
        for yard in team:
            yard.keep(job, pauses)
        return pauses


def _teams(job: Waiting, yards: "Sequence[_Yard]", order: "Callable[[_Yard], Any]") -> "list[list[_Yard]]":
    """What of these devices the job could get: one, or as many of a host as it has processes, the first by `order`."""
    if job.processes == 1 or not (yards and yards[0].is_cuda):
        return [[yard] for yard in yards]
    hosts: dict[str, list[_Yard]] = {}
    for yard in sorted(yards, key=order):
        hosts.setdefault(yard.room.runner_id, []).append(yard)
    return [host[: job.processes] for host in hosts.values() if len(host) >= job.processes]


def _move_in(job: Waiting, team: "Sequence[_Yard]") -> Place:
    sizes = [yard.take(job) for yard in team]
    ids = sorted((yard.room.device.device_id for yard in team), key=lambda name: (len(name), name))
    return Place(job.job_id, team[0].room.runner_id, tuple(ids), sizes[0])


def _wish(job: Waiting) -> tuple[object, ...]:
    """Jobs of one wish are for the same devices; a job for a whole device is another thing than one of some size."""
    return job.slot, job.wish, job.not_on_cpu, job.needs.cuda is None, job.needs.cpu is None


def _asks(job: Waiting) -> tuple[float, ...]:
    """Who asks for no more of any of these finds a place wherever this one does."""
    lasts = math.inf if job.expected_s is None else job.expected_s
    return job.needs.cuda or 0, job.needs.cpu or 0, lasts, job.processes


class _Kept(msgspec.Struct):
    """A reservation. Others may use `spare_slots` and `spare_bytes` beside it, or be gone before `begins_s`."""

    job: Waiting
    begins_s: float
    spare_slots: int
    spare_bytes: float


class _Yard:
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
        """Smallest where the job should wait: where only those are in its way who came before it, then where it can
        start earliest. The first keeps a reservation where it is although estimates change."""
        passed = sum(self._held(tenant) for tenant in self._after(job))
        return self.needs(job) + passed > self._capacity, self._begins_s(job)[0], -self._free

    def keep(self, job: Waiting, pauses: Sequence[str] = ()) -> None:
        """From now on nobody may delay the job here."""
        self._tenants = [
            msgspec.structs.replace(tenant, leaving=True) if tenant.job_id in pauses else tenant
            for tenant in self._tenants
        ]
        begins_s, slots_then, bytes_then = self._begins_s(job)
        after = self._after(job)
        slots = self.room.device.slots.get(job.slot, 0) - 1 - len(after)
        beside = self._capacity - self.needs(job) - sum(map(self._held, after))
        self.kept[job.slot] = _Kept(job, begins_s, min(slots, slots_then), min(beside, bytes_then))

    def _begins_s(self, job: Waiting) -> tuple[float, int, float]:
        """In how many seconds the job fits when all end as expected, infinite if nobody can tell; and the slots and
        bytes that are left beside it then, without limit if nobody can tell."""
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


# -- reasons


def _why(job: Waiting, suited: Sequence[_Yard]) -> str:
    """What is in the way of a job that these devices take."""
    if not any(yard.has_slot(job.slot) for yard in suited):
        return f"Every place is taken on {_listed(yard.room.name for yard in suited)}; the job starts when one is free."
    keeping = [yard for yard in suited if yard.fits(job)]
    if _teams(job, keeping, lambda yard: yard.room.name):
        first = keeping[0].kept[job.slot].job.job_id
        return f"{_needs(job, keeping[0])}; the room on {keeping[0].room.name} is kept for {first}, which came first."
    largest = max(suited, key=lambda yard: yard.total)
    if largest.needs(job) > largest.total:
        return (
            f"{_needs(job, largest)}; the largest device, {largest.room.name}, has {_gib(largest.total)}. Start a "
            "runner on a larger one, or cancel and send a smaller batch_size or max_length, or use_qlora."
        )
    if keeping:
        fitting = Counter(yard.room.runner_id for yard in keeping)
        return f"{_needs(job, largest)}; so much is free on {_listed(f'{n} of {host}' for host, n in fitting.items())}."
    freest = sorted((yard for yard in suited if yard.has_slot(job.slot)), key=lambda yard: -yard.free)
    return f"{_needs(job, freest[0])}, {_listed(f'{_gib(yard.free)} free on {yard.room.name}' for yard in freest)}"


def _behind(job: Waiting, suited: Sequence[_Yard]) -> str:
    """Of a job far behind: a sentence that does not change with each job that starts."""
    return f"{_needs(job, suited[0])}; jobs that came first wait for {_listed(yard.room.name for yard in suited)}."


def _needs(job: Waiting, yard: _Yard) -> str:
    if job.slot is Slot.CPU or math.isinf(yard.free):
        return "needs a place"
    needs = yard.known_needs(job)
    if job.processes > 1 and yard.is_cuda:
        each = "to itself, as its size is not known" if needs is None else f"with {_gib(needs)} each"
        return f"needs {job.processes} GPUs of one host {each}"
    return "needs a device for itself, as its size is not known" if needs is None else f"needs {_gib(needs)}"


def _too_few(job: Waiting, gpus: Sequence[_Yard]) -> str:
    """No host has a GPU for each process."""
    host, most = Counter(yard.room.runner_id for yard in gpus).most_common(1)[0]
    return (
        f"needs {job.processes} GPUs of one host, one for each process; {host} has the most, {most}. Start a runner on "
        f"a host with more, or cancel and send num_processes {most}."
    )


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    further = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + further


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
