"""What waiting jobs ask for, and what devices have for them: the words that `occupancy`, `placement` and `forecast`
speak."""

import math
from collections.abc import Mapping

import msgspec

from jobs.events import Device
from jobs.specs import FinetuneSpec, JobSpec, PlanSpec, Slot, slot_of

_POINT_S = 86_400.0  # a point of priority is a head start of a day, so that the lowest job comes to its turn as well
_SOON_S = 30.0  # taken for never, it would lose the one that waits for it its reservation each time


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
        """When it will be gone, infinite if nobody can tell. Who is over time is taken to end soon, and the later the
        more it is over."""
        if self.leaving:
            return 0.0
        if self.remaining_s is None:
            return math.inf
        return self.remaining_s if self.remaining_s > 0 else max(_SOON_S, -self.remaining_s / 4)


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
