"""What a training would take, on which device it fits, how long it lasts, what is doubtful of it.

`routes/train` asks. The counts come from a job of kind plan, the devices from the runners' reports, the corrections
from earlier runs; the arithmetic is `jobs.footprint`, what would make it fit stands in `savings`.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from jobs import support
from jobs.footprint import GIB, DeviceType, Footprint, Loss, NamedBytes, Term
from jobs.lifecycle import Status
from jobs.models import CPU_LIMIT_PARAMETERS
from jobs.results import PlanResult, TokenCounts
from jobs.specs import FinetuneSpec, Kind, PlanSpec, Slot
from jobs.training_config import TrainingConfig
from service import admission, calibration, savings
from service.answers import Answer
from service.calibration import Correction, Run
from service.model_names import ModelNames, Reserving
from service.occupancy import Occupancy, occupancy
from service.recorder import Recorder
from service.records import JobRecord
from service.savings import Candidate, Change, Estimates, rows_an_update
from service.store import Store

_REMEMBERED = 200  # completed jobs that are looked through
_USUAL_FULL = (1e-6, 1e-4)  # learning rates of full training of a large model
_LEAST_LORA = 1e-5
_FEW_STEPS = 20
_LARGE_BATCH = 512

Basis = Literal["arithmetic", "history", "probe"]


class Memory(Answer, frozen=True, kw_only=True):
    """The memory of a run on a sort of device, on each that it needs. `terms` add up to `expected_bytes`, the largest
    first.

    `basis` says whether it is bare arithmetic, or corrected by earlier runs or by the probe: `correction`.
    """

    device_type: DeviceType
    low_bytes: int
    expected_bytes: int
    high_bytes: int
    terms: tuple[NamedBytes, ...]
    dominant: Term
    moment: Literal["backward", "update"]
    recomputes: bool
    loss: Loss
    basis: Basis
    correction: Correction


class Fit(Answer, frozen=True, kw_only=True):
    """Whether the run finds room on a device that has no other job; null where the device does not tell its memory.

    A run of several processes fits on a GPU when its host has one for each.
    """

    runner_id: str
    device_id: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    expected_bytes: int
    high_bytes: int
    fits: bool | None
    message: str


class Duration(Answer, frozen=True, kw_only=True):
    """How long the steps take, evaluations and saving left out; `message` says from what, or why nobody can tell."""

    minutes: float | None
    basis: Basis | None
    message: str


class PlanAnswer(Answer, frozen=True, kw_only=True):
    """What a training would take. Parameters are by part."""

    job_id: str
    message: str
    parameters: dict[str, int]
    total_parameters: int
    trainable_parameters: dict[str, int]
    rows: int
    tokens: TokenCounts
    steps: int
    effective_batch_size: int
    memory: Memory
    devices: tuple[Fit, ...]
    changes: tuple[Change, ...]
    duration: Duration
    estimated_duration_minutes: float | None
    warnings: tuple[str, ...]
    completed_at: datetime | None


async def answer(record: JobRecord, store: Store, recorder: Recorder, names: ModelNames) -> PlanAnswer:
    """What a completed plan job means here and now."""
    spec, result = record.spec, record.result
    if not isinstance(spec, PlanSpec) or not isinstance(result, PlanResult):
        raise TypeError(f"job {record.job_id} is no completed plan")
    history = calibration.runs_of(await _completed(store, Kind.FINETUNE))
    taking = [view for view in recorder.runners.values() if view.alive and not view.report.stopping]
    devices = occupancy(taking, recorder.live, datetime.now(UTC))
    reserving = await names.reserving(spec.config.model_name)
    return planned(record.job_id, spec.config, result, history, devices, reserving, record.completed_at)


async def duration_at_start(spec: FinetuneSpec, store: Store) -> float | None:
    """Minutes, from the newest plan of the same rows and model; None where nobody planned it or nothing is known."""
    for record in await _completed(store, Kind.PLAN):
        if isinstance(record.spec, PlanSpec) and isinstance(record.result, PlanResult):
            planned_config = record.spec.config
            if _about(planned_config) == _about(spec.config):
                history = calibration.runs_of(await _completed(store, Kind.FINETUNE))
                kind: DeviceType = "cpu" if spec.config.device == "cpu" else _kind_of_device(record.result, history)
                return _duration(spec.config, record.result, history, kind).minutes
    return None


def planned(
    job_id: str,
    config: TrainingConfig,
    result: PlanResult,
    history: Sequence[Run],
    devices: Iterable[Occupancy],
    reserving: Reserving | None = None,
    completed_at: datetime | None = None,
) -> PlanAnswer:
    """The whole answer, from what was counted and what is known."""
    places = list(_places(config, result, history, devices))
    kind = _kind(config, result, places)
    best = max((place for place in places if place.kind == kind), key=lambda place: place.room_bytes or 0, default=None)
    correction = best.correction if best else Correction()
    estimates = Estimates(result, reserving)
    memory = _memory(estimates.footprint(config, kind), kind, correction, _basis(result, correction, kind))
    fits = tuple(
        _fit(place, config, estimates, fits)
        for place, fits in zip(places, savings.fitting(config, estimates, places), strict=True)
    )
    changes = tuple(savings.changes(config, result, estimates, places, kind, correction))
    duration = _duration(config, result, history, kind)
    return PlanAnswer(
        job_id=job_id,
        message=_summary(config, memory, fits),
        parameters=result.parameters,
        total_parameters=sum(result.parameters.values()),
        trainable_parameters=result.trainable_parameters,
        rows=result.rows,
        tokens=result.tokens,
        steps=result.steps,
        effective_batch_size=rows_an_update(config),
        memory=memory,
        devices=fits,
        changes=changes,
        duration=duration,
        estimated_duration_minutes=duration.minutes,
        warnings=(*result.warnings, *admission.warnings_of(config), *_warnings(config, result, fits, changes)),
        completed_at=completed_at,
    )


# -- memory


def _places(
    config: TrainingConfig, result: PlanResult, history: Sequence[Run], devices: Iterable[Occupancy]
) -> Iterator[Candidate]:
    for each in devices:
        kind: DeviceType = "cuda" if each.device.is_cuda else "cpu"
        takes_models = each.device.slots.get(Slot.GPU, 0) and config.device in ("auto", kind)
        if takes_models and not support.why_not_device(config, kind):
            found = _probed(result, kind) or calibration.correction(history, each.runner_id, kind, result.shape.family)
            yield Candidate(each.runner_id, each.device, each.capacity_bytes, found)


def _probed(result: PlanResult, kind: DeviceType) -> Correction | None:
    """What the probe measured, by what was predicted for it."""
    probe = result.probe
    if probe is None or not probe.device.startswith(kind):
        return None
    ratio = probe.peak_memory_bytes / probe.predicted_memory_bytes
    return Correction(factor=ratio, runs=1, uncorrected_error=abs(1 / ratio - 1))


def _kind(config: TrainingConfig, result: PlanResult, places: Sequence[Candidate]) -> DeviceType:
    """The sort of device the run is for."""
    if config.device != "auto":
        return config.device
    if support.why_not_device(config, "cpu"):
        return "cuda"
    is_large = sum(result.parameters.values()) > CPU_LIMIT_PARAMETERS
    return "cuda" if is_large or any(place.device.is_cuda for place in places) else "cpu"


def _kind_of_device(result: PlanResult, history: Sequence[Run]) -> DeviceType:
    is_large = sum(result.parameters.values()) > CPU_LIMIT_PARAMETERS
    return "cuda" if is_large or (history and history[0].device_type == "cuda") else "cpu"


def _basis(result: PlanResult, correction: Correction, kind: DeviceType) -> Basis:
    if _probed(result, kind):
        return "probe"
    return "history" if correction.runs else "arithmetic"


def _memory(found: Footprint, kind: DeviceType, correction: Correction, basis: Basis) -> Memory:
    found = found.times(correction.factor)
    return Memory(
        device_type=kind,
        low_bytes=found.low_bytes,
        expected_bytes=found.expected_bytes,
        high_bytes=found.high_bytes,
        terms=found.terms,
        dominant=found.dominant,
        moment=found.moment,
        recomputes=found.recomputes,
        loss=found.loss,
        basis=basis,
        correction=correction,
    )


def _fit(place: Candidate, config: TrainingConfig, estimates: Estimates, fits: bool | None) -> Fit:
    needed, device = estimates.needed_bytes(config, place.kind, place.correction), place.device
    found = estimates.footprint(config, place.kind).times(place.correction.factor)
    room, kept = place.room_bytes, ""
    if place.holds(found.high_bytes) and not place.holds(needed):
        kept = f" {_gib(needed)} are kept for it, for rows of {config.max_length} tokens,"
    if fits == place.holds(needed):
        has = f"{place.name} " + ("does not tell its memory" if room is None else f"has {_gib(room)} for it")
    elif fits is False:
        has = f"{place.runner_id} has fewer with room for it"
    else:
        has = f"not all GPUs of {place.runner_id} tell their memory"
    verdict = {True: "Fits", False: "Does not fit", None: "Unknown"}[fits]
    return Fit(
        runner_id=place.runner_id,
        device_id=device.device_id,
        name=device.name,
        total_bytes=device.memory_total_bytes,
        free_bytes=device.memory_free_bytes,
        expected_bytes=found.expected_bytes,
        high_bytes=found.high_bytes,
        fits=fits,
        message=f"{verdict}: it takes {_gib(found.expected_bytes)}, up to {_gib(found.high_bytes)},"
        f"{_shared(config, place.kind)}{kept} and {has}.",
    )


# -- time, and words


def _duration(config: TrainingConfig, result: PlanResult, history: Sequence[Run], kind: DeviceType) -> Duration:
    rows = min(config.num_epochs * result.rows, result.steps * rows_an_update(config))
    tokens = rows * min(result.tokens.mean, config.max_length)
    probe = result.probe
    rate, source = calibration.speed(history, kind, config, sum(result.parameters.values()))
    basis: Basis = "history"
    if not rate and probe is not None and probe.device.startswith(kind):
        rate = calibration.together(probe.tokens_per_second, kind, of=config.num_processes, by=1)
        of_one = " with one process" if config.num_processes > 1 else ""
        source, basis = f"the probe on {probe.device}{of_one}", "probe"
    if not rate:
        why = f"No training by this method has run on a {kind} device yet: ask again with a probe, which measures it."
        return Duration(minutes=None, basis=None, message=why)
    minutes = tokens / rate / 60
    said = f"{tokens:,.0f} tokens at {rate:,.0f} a second, from {source}; evaluations and saving come on top."
    return Duration(minutes=round(minutes, 2), basis=basis, message=said)


def _warnings(
    config: TrainingConfig, result: PlanResult, fits: Sequence[Fit], changes: Sequence[Change]
) -> Iterator[str]:
    """Settings that are allowed and rarely meant, as far as only the counts can tell."""
    low, high = _USUAL_FULL
    if config.method == "full" and sum(result.parameters.values()) > CPU_LIMIT_PARAMETERS:
        if not low <= config.learning_rate <= high:
            yield (
                f"learning_rate {config.learning_rate:g} is unusual for training all weights of a large model: "
                f"{low:g} to {high:g} is."
            )
    elif config.method != "full" and config.learning_rate < _LEAST_LORA:
        yield f"learning_rate {config.learning_rate:g} is low for adapters, which hardly learn below {_LEAST_LORA:g}."
    together, times = rows_an_update(config), " times num_processes" if config.num_processes > 1 else ""
    if together > min(result.rows, _LARGE_BATCH):
        yield (
            f"An update sees {together} rows (batch_size times gradient_accumulation_steps{times}) and there are "
            f"{result.rows}: lower one of them, or the run makes few updates."
        )
    if result.steps < _FEW_STEPS:
        yield f"The run makes {result.steps} updates, which rarely teach anything: more epochs, or smaller batches."
    if result.longest is not None and config.max_length > result.longest:
        yield f"max_length {config.max_length} is above the {result.longest} tokens the model was made for."
    if result.tokens.truncated:
        yield (
            f"{result.tokens.truncated} of {result.tokens.looked_at} rows are longer than max_length "
            f"{config.max_length} and lose the end of their answer; the longest has {result.tokens.max} tokens."
        )
    if config.batch_size > 1 and any(fit.fits is False for fit in fits):
        smaller = next((each for each in changes if "batch_size" in each.config and each.fits), None)
        if smaller is not None:
            fitting = smaller.config["batch_size"]
            yield f"batch_size {config.batch_size} is too large for {smaller.fits[0]}; {fitting} fits."


def _summary(config: TrainingConfig, memory: Memory, fits: Sequence[Fit]) -> str:
    takes = (
        f"It takes {_gib(memory.expected_bytes)} ({_gib(memory.low_bytes)} to {_gib(memory.high_bytes)})"
        f"{_shared(config, memory.device_type)}, most of it {memory.dominant}."
    )
    fitting = [f"{fit.device_id} of {fit.runner_id}" for fit in fits if fit.fits]
    if fitting:
        return f"{takes} It fits on {', '.join(fitting)}."
    return f"{takes} It fits on no connected device." if fits else f"{takes} No runner reports a device for it."


def _about(config: TrainingConfig) -> tuple[object, ...]:
    """What decides how long the rows of a training are."""
    return config.model_name, config.train_data_path, config.method


async def _completed(store: Store, kind: Kind) -> list[JobRecord]:
    return await store.jobs(kinds=(kind,), status=Status.COMPLETED, limit=_REMEMBERED)


def _shared(config: TrainingConfig, kind: DeviceType) -> str:
    """How several processes take it: a device each, or together."""
    if config.num_processes == 1:
        return ""
    count = config.num_processes
    return f" on each of {count} GPUs of one host" if kind == "cuda" else f" in {count} processes together"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
