"""When waiting jobs will start: the placement itself, played forward until the devices are known to be free. Pure.

`Reconciler.queue` asks. What nobody can tell stays None: behind a job whose end is not known there is no time to say.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from service.placement import Place, place
from service.rooms import Room, Tenant, Waiting

_MOMENTS = 200  # ends of jobs that are looked at


def starts(waiting: Sequence[Waiting], rooms: Sequence[Room]) -> dict[str, float]:
    """Seconds from now to the start of each job, as far as it can be told; nothing else arrives meanwhile."""
    found: dict[str, float] = {}
    left, now_s = list(waiting), 0.0
    for _ in range(_MOMENTS):
        placed = {decision.job_id: decision for decision in place(left, rooms) if isinstance(decision, Place)}
        found |= dict.fromkeys(placed, now_s)
        rooms = [_with(room, left, placed) for room in rooms]
        left = [job for job in left if job.job_id not in placed]
        next_s = min((tenant.ends_s for room in rooms for tenant in room.tenants), default=math.inf)
        if not left or math.isinf(next_s):
            break
        now_s += next_s
        rooms = [_after(room, next_s) for room in rooms]
    return found


def _with(room: Room, jobs: Sequence[Waiting], placed: Mapping[str, Place]) -> Room:
    """The room with those who move in."""
    for job in jobs:
        at = placed.get(job.job_id)
        if at is None or at.runner_id != room.runner_id or room.device.device_id not in at.device_ids:
            continue
        free = None if room.free_bytes is None else 0 if at.bytes is None else room.free_bytes - at.bytes
        tenant = Tenant(job_id=job.job_id, slot=job.slot, bytes=at.bytes, turn=job.turn, remaining_s=job.expected_s)
        room = Room(
            room.runner_id,
            room.device,
            {**room.free, job.slot: room.free[job.slot] - 1},
            free,
            (*room.tenants, tenant),
        )
    return room


def _after(room: Room, seconds: float) -> Room:
    """The room when the time has passed: who is due is gone, and gave back what it had."""
    gone = [tenant for tenant in room.tenants if tenant.ends_s <= seconds]
    stay = tuple(
        msgspec.structs.replace(tenant, remaining_s=_less(tenant.remaining_s, seconds))
        for tenant in room.tenants
        if tenant not in gone
    )
    free_bytes = room.free_bytes
    if free_bytes is not None:
        total = room.device.memory_total_bytes or free_bytes
        back = sum(total if tenant.bytes is None else tenant.bytes for tenant in gone)
        free_bytes = min(total, free_bytes + back)
    free = {slot: count + sum(tenant.slot is slot for tenant in gone) for slot, count in room.free.items()}
    return Room(room.runner_id, room.device, free, free_bytes, stay)


def _less(remaining_s: float | None, seconds: float) -> float | None:
    return None if remaining_s is None else remaining_s - seconds
