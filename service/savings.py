"""What would make a training fit: settings that take less memory, what each costs, and where it then fits.

`planning` asks, where a plan does not fit on every device. The cheapest for the outcome come first.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from jobs import footprint
from jobs.events import Device
from jobs.footprint import DeviceType, Footprint, RowTokens
from jobs.results import PlanResult
from jobs.training_config import TrainingConfig
from service.answers import Answer
from service.calibration import Correction
from service.model_names import Reserving

_SHORTEST = 128
_FEWEST_IMAGE_TOKENS = 64  # of a picture, below which little is to be seen

Values = dict[str, bool | int | float | str]


class Change(Answer, frozen=True, kw_only=True):
    """Values that take less memory, and what it then takes. `fits` names the devices it then fits on and did not."""

    title: str
    cost: str
    config: Values
    expected_bytes: int
    high_bytes: int
    fits: tuple[str, ...]


class Candidate(msgspec.Struct, frozen=True):
    """A device that takes work with a model, what it can hold without any job of ours, None where it does not tell,
    and what corrects predictions for it."""

    runner_id: str
    device: Device
    room_bytes: int | None
    correction: Correction

    @property
    def kind(self) -> DeviceType:
        return "cuda" if self.device.is_cuda else "cpu"

    @property
    def name(self) -> str:
        return f"{self.device.device_id} of {self.runner_id}"

    def holds(self, needed_bytes: int) -> bool | None:
        return None if self.room_bytes is None else needed_bytes <= self.room_bytes


class Estimates:
    """What trainings on counted rows take, and what placement sets aside for them, which has not seen the rows."""

    def __init__(self, result: PlanResult, reserving: Reserving | None) -> None:
        self._result, self._reserving = result, reserving

    def footprint(self, config: TrainingConfig, kind: DeviceType) -> Footprint:
        """Of each device, uncorrected."""
        counted, pixels = self._result.tokens, self._result.shape.pixels_per_token
        longest = counted.max
        if config.max_pixels is not None and pixels is not None:
            longest -= max(0, counted.image_max - counted.images_max * (config.max_pixels // pixels))
        rows = RowTokens(longest=longest, trained=min(counted.trained_max, longest), images=counted.images_max)
        return footprint.on_device(footprint.estimate(config, self._result.shape, rows, device=kind), config, kind)

    def needed_bytes(self, config: TrainingConfig, kind: DeviceType, correction: Correction) -> int:
        """What a device must have free: the upper figure, and what placement asks for."""
        high = self.footprint(config, kind).times(correction.factor).high_bytes
        return max(high, self._reserving.size_bytes(config, kind) if self._reserving else 0)


class _Step(msgspec.Struct, frozen=True):
    """One way to take less, and its price."""

    title: str
    cost: str
    config: Values


def changes(
    config: TrainingConfig,
    result: PlanResult,
    estimates: Estimates,
    places: Sequence[Candidate],
    kind: DeviceType,
    correction: Correction,
) -> Iterator[Change]:
    """Nothing where it fits everywhere; else each single way, the cheapest first, then all of those that are needed."""
    before = _fitting_names(config, estimates, places)
    if places and len(before) == len(places):
        return
    now = estimates.needed_bytes(config, kind, correction)
    gpus = Counter(place.runner_id for place in places if place.kind == "cuda")
    lacks_gpus = 0 < max(gpus.values(), default=0) < config.num_processes
    together: Values = {}
    is_solved = False
    steps = []
    for step in _steps(config, result):
        made = _change(step, config, estimates, places, kind, correction, before)
        less = estimates.needed_bytes(_with(config, step.config), kind, correction) < now
        if less or ("num_processes" in step.config and lacks_gpus):
            steps.append(step)
            is_solved = is_solved or bool(made.fits)
            yield made
    for number, step in enumerate(steps, 1):
        together = _keeping_rows(config, together | step.config)
        if is_solved or number == 1:
            continue
        all_of_it = _Step(" + ".join(each.title for each in steps[:number]), "all of these prices", together)
        made = _change(all_of_it, config, estimates, places, kind, correction, before)
        if made.fits or (not places and number == len(steps)):
            yield made
            return


def _steps(config: TrainingConfig, result: PlanResult) -> Iterator[_Step]:
    """Ways to take less, the cheapest for the outcome first."""
    if config.batch_size > 1:
        yield _Step(
            f"batch_size {config.batch_size // 2}",
            _cost_of_fewer(config, {"batch_size": config.batch_size // 2}, "somewhat slower"),
            _keeping_rows(config, {"batch_size": config.batch_size // 2}),
        )
        if config.batch_size > 3:
            alone: Values = {"batch_size": 1}
            yield _Step("batch_size 1", _cost_of_fewer(config, alone, "slower"), _keeping_rows(config, alone))
    fitting_all = _rounded_up(result.tokens.max)
    if fitting_all < config.max_length:
        yield _Step(f"max_length {fitting_all}", "none: no row is longer", {"max_length": fitting_all})
    if config.num_processes > 1:
        one: Values = {"num_processes": 1}
        yield _Step("one process", _cost_of_fewer(config, one, "slower by the others"), _keeping_rows(config, one))
    if config.gradient_checkpointing is not True:
        yield _Step(
            "recompute activations", "none for the outcome; about a third slower", {"gradient_checkpointing": True}
        )
    if config.optimizer == "adamw":
        yield _Step("8-bit optimiser", "updates are a little less exact", {"optimizer": "adamw_8bit"})
    if config.method == "full":
        yield _Step("LoRA", "small adapters learn less than all weights", {"use_lora": True})
    if config.method != "qlora":
        yield _Step("4-bit base", "slower, and a little less exact", {"use_lora": True, "use_qlora": True})
    elif config.qlora_bits == 8:
        yield _Step("4-bit base", "a little less exact", {"use_lora": True, "use_qlora": True, "qlora_bits": 4})
    pixels, of_pictures = result.shape.pixels_per_token, result.tokens.image_max
    if pixels is not None and of_pictures > 2 * _FEWEST_IMAGE_TOKENS:
        cap = of_pictures // result.tokens.images_max // 2 * pixels
        yield _Step(
            f"max_pixels {cap}", "pictures at half the pixels: small things are harder to see", {"max_pixels": cap}
        )
    shorter = _rounded_up(result.tokens.p95)
    if shorter < min(config.max_length, result.tokens.max):
        yield _Step(
            f"max_length {shorter}", "the longest 5 % of the rows lose the end of their answer", {"max_length": shorter}
        )


def _rounded_up(tokens: int) -> int:
    return max(_SHORTEST, -(-tokens // 64) * 64)


def rows_an_update(config: TrainingConfig) -> int:
    """The effective batch: what all processes compute before the weights change."""
    return config.batch_size * config.gradient_accumulation_steps * config.num_processes


def _cost_of_fewer(config: TrainingConfig, changes: Values, speed: str) -> str:
    """Of computing less at once, which accumulation makes up for as far as it may."""
    before, after = rows_an_update(config), rows_an_update(_with(config, _keeping_rows(config, changes)))
    if before == after:
        return f"none for the outcome: the same rows an update, by more accumulation; {speed}"
    return f"an update sees {after} rows instead of {before}; {speed}"


def _keeping_rows(config: TrainingConfig, changes: Values) -> Values:
    """With the accumulation that keeps the rows of an update, or the most there is, where less is computed at once."""
    changed = _with(config, changes)
    at_once = changed.batch_size * changed.num_processes
    if at_once == config.batch_size * config.num_processes:
        return changes
    return {**changes, "gradient_accumulation_steps": min(128, -(-rows_an_update(config) // at_once))}


def _change(
    step: _Step,
    config: TrainingConfig,
    estimates: Estimates,
    places: Sequence[Candidate],
    kind: DeviceType,
    correction: Correction,
    before: set[str],
) -> Change:
    changed = _with(config, step.config)
    found = estimates.footprint(changed, kind).times(correction.factor)
    return Change(
        title=step.title,
        cost=step.cost,
        config=step.config,
        expected_bytes=found.expected_bytes,
        high_bytes=found.high_bytes,
        fits=tuple(sorted(_fitting_names(changed, estimates, places) - before)),
    )


def fitting(config: TrainingConfig, estimates: Estimates, places: Sequence[Candidate]) -> list[bool | None]:
    """Whether the run fits on each device, None where nobody can tell: on a GPU with as many of its host as it has
    processes."""
    alone = [place.holds(estimates.needed_bytes(config, place.kind, place.correction)) for place in places]
    return [
        _with_others(holds, config.num_processes, _gpus_beside(place, places, alone)) if place.kind == "cuda" else holds
        for place, holds in zip(places, alone, strict=True)
    ]


def _gpus_beside(place: Candidate, places: Sequence[Candidate], alone: Sequence[bool | None]) -> list[bool | None]:
    """Of all GPUs of a place's host, itself included, whether they have room for a process."""
    return [
        holds
        for other, holds in zip(places, alone, strict=True)
        if (other.runner_id, other.kind) == (place.runner_id, "cuda")
    ]


def _with_others(holds: bool | None, processes: int, host: Sequence[bool | None]) -> bool | None:
    if holds is False or len(host) - host.count(False) < processes:
        return False
    return holds if host.count(True) >= processes else None


def _fitting_names(config: TrainingConfig, estimates: Estimates, places: Sequence[Candidate]) -> set[str]:
    return {place.name for place, fits in zip(places, fitting(config, estimates, places), strict=True) if fits}


def _with(config: TrainingConfig, changes: Values) -> TrainingConfig:
    return msgspec.structs.replace(config, **changes)
