"""Which job goes to which runner and device: a pure function, asked by `reconcile.py` and `dispatch.py`.

Higher priority first, then the older job; a job that fits may pass one that waits for another kind of device.
A device never gets more jobs than it has slots.
"""

from collections.abc import Iterable, Mapping, Sequence

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


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A job without a place. `wish` is auto, cpu or cuda; `not_on_cpu` says why a CPU must be asked for."""

    job_id: str
    slot: Slot
    wish: str = "auto"
    not_on_cpu: str | None = None
    priority: int = 0


class Room(msgspec.Struct, frozen=True):
    """A device that takes work, and how many slots of each sort nobody occupies."""

    runner_id: str
    device: Device
    free: Mapping[Slot, int]


class Place(msgspec.Struct, frozen=True):
    """The job goes there."""

    job_id: str
    runner_id: str
    device_id: str


class Wait(msgspec.Struct, frozen=True):
    """The job waits; `reason` is a sentence for its owner."""

    job_id: str
    reason: str


Decision = Place | Wait


def waiting_for(job_id: str, spec: JobSpec, not_on_cpu: str | None) -> Waiting:
    """What a job's spec asks of a device."""
    asking = spec.config if isinstance(spec, FinetuneSpec | PlanSpec) else spec
    return Waiting(
        job_id=job_id,
        slot=slot_of(spec),
        wish=getattr(asking, "device", "auto"),
        not_on_cpu=not_on_cpu,
        priority=getattr(asking, "priority", 0),
    )


def place(waiting: Iterable[Waiting], rooms: Sequence[Room]) -> list[Decision]:
    """A decision for every job; `waiting` is in the order of submission."""
    free = {_key(room): dict(room.free) for room in rooms}
    decisions: list[Decision] = []
    hopeless: dict[tuple[object, ...], str] = {}  # why jobs that ask for this find no place any more
    for job in sorted(waiting, key=lambda job: -job.priority):  # sorted keeps the age among equals
        asked = (job.slot, job.wish, job.not_on_cpu)
        found = None if asked in hopeless else _emptiest(job, rooms, free)
        if isinstance(found, Room):
            free[_key(found)][job.slot] -= 1
            decisions.append(Place(job.job_id, found.runner_id, found.device.device_id))
            continue
        if found is not None:
            hopeless[asked] = found
        decisions.append(Wait(job.job_id, hopeless[asked]))
    return decisions


def _emptiest(job: Waiting, rooms: Sequence[Room], free: Mapping[tuple[str, str], Mapping[Slot, int]]) -> Room | str:
    """The device with the most free slots among those that take such a job, or why there is none."""
    suited = _suited(job, rooms)
    if isinstance(suited, str):
        return suited
    best = max(suited, key=lambda room: free[_key(room)].get(job.slot, 0))
    return best if free[_key(best)].get(job.slot, 0) > 0 else _taken(suited)


def _suited(job: Waiting, rooms: Sequence[Room]) -> list[Room] | str:
    """The devices that take such a job when they are free, or why there is none."""
    if not rooms:
        return NO_RUNNER
    able = [room for room in rooms if room.device.slots.get(job.slot, 0) > 0]
    if job.slot is Slot.CPU:
        return able or NO_DATA_WORK
    cuda = [room for room in able if room.device.is_cuda]
    cpu = [room for room in able if not room.device.is_cuda]
    if job.wish == "cpu":
        return cpu or NO_CPU_FOR_MODELS
    if cuda:
        return cuda
    return job.not_on_cpu or cpu or NO_MODEL_WORK


def _taken(suited: Sequence[Room]) -> str:
    names = ", ".join(f"{room.device.device_id} of {room.runner_id}" for room in suited)
    return f"Every place is taken on {names}; the job starts when one is free."


def _key(room: Room) -> tuple[str, str]:
    return room.runner_id, room.device.device_id
