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

from jobs.specs import Slot
from service.rooms import Room, Waiting
from service.yards import Yard

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

_EXPLAINED = 10  # jobs that are told what is free now; those behind them need not hear of each change
_LISTED = 3  # devices in a reason
_GIB = 2**30


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


def place(waiting: Iterable[Waiting], rooms: Sequence[Room]) -> list[Decision]:
    """A decision for every job; `waiting` is in the order of submission."""
    return _Round(rooms).decide(sorted(waiting, key=lambda job: job.turn))  # sorted keeps the age among equals


class _Round:
    """One look at all jobs in their order."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._yards = [Yard(room) for room in rooms]
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
            teams = [_first(job, host, lambda yard: yard.crowding(job)) for host in _hosts(job, open_)]
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

    def _suited(self, job: Waiting) -> list[Yard] | str:
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
            return cuda if _hosts(job, cuda) else _too_few(job, cuda, "")
        return job.not_on_cpu or cpu or NO_MODEL_WORK

    def _reserve(self, job: Waiting, suited: Sequence[Yard]) -> tuple[str, ...]:
        """Keep room for the first of those that ask for the same devices; the jobs that are to pause for it."""
        if any(job.slot in yard.kept for yard in suited):
            return ()
        able = [yard for yard in suited if yard.could_hold(job)]
        pauses = {yard: found for yard in able if (found := yard.clears_by_pausing(job)) is not None}
        clearing = [_pausing_fewest(job, host, pauses) for host in _hosts(job, list(pauses))]
        if clearing:
            return _keep(job, *min(clearing, key=lambda found: len(found[1])))
        teams = [_first(job, host, lambda yard: yard.delay(job)) for host in _hosts(job, able)]
        return _keep(job, min(teams, key=lambda team: max(yard.delay(job) for yard in team)), ()) if teams else ()


def _hosts(job: Waiting, yards: Sequence[Yard]) -> list[list[Yard]]:
    """The GPUs of each host that has one for each process; where one device is enough, each for itself."""
    if job.processes == 1 or not (yards and yards[0].is_cuda):
        return [[yard] for yard in yards]
    hosts: dict[str, list[Yard]] = {}
    for yard in yards:
        hosts.setdefault(yard.room.runner_id, []).append(yard)
    return [host for host in hosts.values() if len(host) >= job.processes]


def _first(job: Waiting, host: Sequence[Yard], order: Callable[[Yard], Any]) -> list[Yard]:
    """What the job would get of a host."""
    return sorted(host, key=order)[: job.processes]


def _pausing_fewest(
    job: Waiting, host: Sequence[Yard], pauses: Mapping[Yard, tuple[str, ...]]
) -> tuple[list[Yard], tuple[str, ...]]:
    """What the job would get of a host where places are made by pausing, and who pauses: few, for one job may be on
    several devices."""
    team: list[Yard] = []
    together: dict[str, None] = {}
    while len(team) < min(job.processes, len(host)):
        left = [yard for yard in host if yard not in team]
        team.append(min(left, key=lambda yard: len(set(pauses[yard]) - together.keys())))
        together |= dict.fromkeys(pauses[team[-1]])
    return team, tuple(together)


def _keep(job: Waiting, team: Sequence[Yard], pauses: tuple[str, ...]) -> tuple[str, ...]:
    for yard in team:
        yard.expect_to_leave(pauses)
    begins_s = max(yard.begins_s(job) for yard in team)
    for yard in team:
        yard.keep(job, begins_s)
    return pauses


def _move_in(job: Waiting, team: Sequence[Yard]) -> Place:
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


# -- reasons


def _why(job: Waiting, suited: Sequence[Yard]) -> str:
    """What is in the way of a job that these devices take."""
    if not any(yard.has_slot(job.slot) for yard in suited):
        return f"Every place is taken on {_listed(yard.room.name for yard in suited)}; the job starts when one is free."
    keeping = [yard for yard in suited if yard.fits(job)]
    kept = next((yard for yard in keeping if not yard.lets_pass(job)), None)
    if kept is not None and _hosts(job, keeping):
        first = kept.kept[job.slot].job.job_id
        return f"{_needs(job, kept)}; the room on {kept.room.name} is kept for {first}, which came first."
    large = [yard for yard in suited if yard.needs(job) <= yard.total]
    if not _hosts(job, large):
        return _too_large(job, suited, large)
    if keeping:
        fitting = Counter(yard.room.runner_id for yard in keeping)
        return f"{_needs(job, large[0])}; that is free on {_listed(f'{n} of {host}' for host, n in fitting.items())}."
    freest = sorted((yard for yard in suited if yard.has_slot(job.slot)), key=lambda yard: -yard.free)
    return f"{_needs(job, freest[0])}, {_listed(f'{_gib(yard.free)} free on {yard.room.name}' for yard in freest)}"


def _too_large(job: Waiting, suited: Sequence[Yard], large: Sequence[Yard]) -> str:
    """Too few devices could ever hold it."""
    smaller = "a smaller batch_size or max_length, or use_qlora"
    if large:
        return _too_few(job, large, f" and {smaller}")
    largest = max(suited, key=lambda yard: yard.total)
    return (
        f"{_needs(job, largest)}; the largest device, {largest.room.name}, has {_gib(largest.total)}. Start a runner "
        f"on a larger one, or cancel and send {smaller}."
    )


def _behind(job: Waiting, suited: Sequence[Yard]) -> str:
    """Of a job far behind: a sentence that does not change with each job that starts."""
    return f"{_needs(job, suited[0])}; jobs that came first wait for {_listed(yard.room.name for yard in suited)}."


def _needs(job: Waiting, yard: Yard) -> str:
    needs = yard.known_needs(job)
    if job.processes > 1 and yard.is_cuda:
        unknown = " for itself, as its size is not known" if needs is None else f" with {_gib(needs)} each"
        return f"needs {job.processes} GPUs of one host{'' if math.isinf(yard.free) else unknown}"
    if job.slot is Slot.CPU or math.isinf(yard.free):
        return "needs a place"
    return "needs a device for itself, as its size is not known" if needs is None else f"needs {_gib(needs)}"


def _too_few(job: Waiting, gpus: Sequence[Yard], or_else: str) -> str:
    """No host has a GPU for each process."""
    host, most = Counter(yard.room.runner_id for yard in gpus).most_common(1)[0]
    return (
        f"{_needs(job, gpus[0])}, one for each process; {host} has the most of these, {most}. Start a runner on a host "
        f"with more, or cancel and send num_processes {most}{or_else}."
    )


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    further = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + further


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
