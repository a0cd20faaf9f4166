"""What finished trainings teach about the next one: how far predictions of memory were off, and how fast a host is.

Pure functions of job records, asked by `planning` and `model_names`. The history is the jobs themselves: what is
deleted is forgotten.
"""

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from jobs.footprint import DeviceType
from jobs.results import FinetuneResult
from jobs.specs import FinetuneSpec
from jobs.training_config import TrainingConfig
from service.records import JobRecord

_NEWEST = 20  # runs that count
_MOST = 2.0  # a run that took more than so many times its prediction is a fault, not a habit


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A completed training, as far as it counts here."""

    runner_id: str
    device_type: DeviceType
    config: TrainingConfig
    result: FinetuneResult


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """By what a host's predictions for a family of models are multiplied, from how many runs.

    `error` is how far the corrected predictions are off, as a share: the median over the runs, each predicted from
    the others alone; null with one run. `uncorrected_error` is that of the bare arithmetic.
    """

    factor: float = 1.0
    runs: int = 0
    error: float | None = None
    uncorrected_error: float | None = None


def runs_of(records: Iterable[JobRecord]) -> list[Run]:
    """The completed trainings among the records, in their order."""
    found = []
    for record in records:
        if isinstance(record.spec, FinetuneSpec) and isinstance(record.result, FinetuneResult) and record.device:
            kind: DeviceType = "cuda" if record.device.startswith("cuda") else "cpu"
            runner = record.runner_id or ""
            found.append(Run(runner_id=runner, device_type=kind, config=record.spec.config, result=record.result))
    return found


def correction(runs: Sequence[Run], runner_id: str, device_type: DeviceType, family: str) -> Correction:
    """Of one host, device and family; `runs` are newest first."""
    ratios = [
        run.result.peak_memory_bytes / run.result.predicted_memory_bytes
        for run in runs
        if (run.runner_id, run.device_type, run.result.family) == (runner_id, device_type, family)
        and not (run.config.cache_vision_features and device_type == "cpu")  # it has room for more than most rows fill
        and run.result.peak_memory_bytes
        and run.result.predicted_memory_bytes
    ][:_NEWEST]
    if not ratios:
        return Correction()
    return Correction(
        factor=_factor(ratios),
        runs=len(ratios),
        error=_left_out_error(ratios) if len(ratios) > 1 else None,
        uncorrected_error=median(abs(1 / ratio - 1) for ratio in ratios),
    )


def largest_factor(runs: Sequence[Run], device_type: DeviceType, family: str) -> float:
    """The correction that holds on whichever host a training goes to: the largest of those hosts that have one."""
    hosts = sorted({run.runner_id for run in runs})
    found = [correction(runs, host, device_type, family) for host in hosts]
    return max((each.factor for each in found if each.runs), default=1.0)


def speed(runs: Sequence[Run], device_type: DeviceType, config: TrainingConfig, parameters: int) -> tuple[float, str]:
    """Tokens a second that such a training can be expected to make, and from what; 0 where nothing is known.

    The same model, method and number of processes count; else that model with another number of them; else other
    models by the same method, by the ratio of their sizes: the work of a token grows with the parameters it passes.
    """
    alike = [run for run in runs if run.device_type == device_type and run.config.method == config.method]
    measured = [run for run in alike if run.result.tokens_per_second]
    of_model = [run for run in measured if run.config.model_name == config.model_name]
    others = [run for run in measured if run.result.total_parameters]
    for found, of in ((of_model, "this model"), (others, "other models, by their size")):
        same = [run for run in found if run.config.num_processes == config.num_processes]
        counted = (same or found)[:_NEWEST]
        if counted:
            sizes = [1.0 if found is of_model else _size(run) / parameters for run in counted]
            rates = [_rate(run, config.num_processes) * size for run, size in zip(counted, sizes, strict=True)]
            by = "" if same else ", with another number of processes"
            return median(rates), f"{len(rates)} earlier trainings of {of}{by}"
    return 0.0, ""


def together(rate: float, device_type: DeviceType, *, of: int, by: int) -> float:
    """Tokens a second that `of` processes make where `by` of them made `rate`.

    GPUs work beside each other, and what the way of the gradients between them costs is not known; the processes of a
    CPU share its cores.
    """
    return rate * of / by if device_type == "cuda" else rate


def _rate(run: Run, processes: int) -> float:
    rate = run.result.tokens_per_second or 0.0
    return together(rate, run.device_type, of=processes, by=run.config.num_processes)


def _size(run: Run) -> int:
    return sum(run.result.total_parameters.values())


def _factor(ratios: Sequence[float]) -> float:
    return min(_MOST, max(1 / _MOST, median(ratios)))


def _left_out_error(ratios: Sequence[float]) -> float:
    errors = []
    for at, ratio in enumerate(ratios):
        others = [*ratios[:at], *ratios[at + 1 :]]
        errors.append(abs(_factor(others) / ratio - 1))
    return median(errors)
