"""What a job's model name means on this host: for the refusal at submit, for how large the model is, and for the
memory a job with it needs.

`dispatch.py` and `reconcile.py` ask. A job that uses what another job trained has that job's model.
"""

import asyncio
import time

import msgspec

from jobs import support
from jobs.errors import InvalidInput
from jobs.footprint import DeviceType, inference_reserve_bytes, reserve_bytes
from jobs.model_config import config_of, family_of
from jobs.model_shapes import ModelShape, known_shape, shape_of
from jobs.models import CPU_LIMIT_PARAMETERS, ModelSource, Origin, model_roots, resolve
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import EvaluateSpec, ExportSpec, FinetuneSpec, GenerateSpec, JobSpec, Kind, PlanSpec, Slot, slot_of
from jobs.training_config import TrainingConfig
from service import calibration
from service.calibration import Run
from service.ledger import Ledger
from service.placement import SIZE_UNKNOWN, TOO_LARGE_FOR_CPU
from service.rooms import NOTHING, Needs

BITS_NEED_GPU = (
    "qlora_bits 8 needs a GPU, and no connected runner has one. "
    "Start a runner on a GPU host, or cancel and send qlora_bits: 4."
)
_DEVICES: tuple[DeviceType, DeviceType] = ("cuda", "cpu")  # in the order of `Needs`
_ANSWERED_ROWS, _ANSWERED_LENGTH = 8, 2048  # what evaluating and answering take together
_REMEMBERED_S = 1.0  # many jobs submitted together name the same model
_LOOKED_AT, _FRESH_S = 200, 30.0  # completed trainings, the newest; and for how long


class Reserving(msgspec.Struct, frozen=True, kw_only=True):
    """What placement sets aside for trainings of a model: rows as long as they may be, corrected for whichever host."""

    shape: ModelShape
    factors: dict[DeviceType, float]

    def size_bytes(self, config: TrainingConfig, device: DeviceType) -> int:
        """Of each device."""
        return reserve_bytes(config, self.shape, device=device, factor=self.factors[device])


class ModelNames:
    """Looks names up below the model roots, and what earlier trainings took in the ledger."""

    def __init__(self, settings: Settings, root: DataRoot, ledger: Ledger) -> None:
        self._roots = model_roots(settings, root)
        self._ledger = ledger
        self._known: dict[str, tuple[float, ModelSource]] = {}
        self._learnt: tuple[float, list[Run]] = (-_FRESH_S, [])

    async def source(self, name: str) -> ModelSource:
        """What the name means; the disk is asked again after a moment.

        Raises:
            InvalidInput: it can never work.
        """
        oldest = time.monotonic() - _REMEMBERED_S
        at, source = self._known.get(name, (0.0, None))
        if source is None or at < oldest:
            source = await asyncio.to_thread(resolve, name, self._roots)
            self._known = {name: known for name, known in self._known.items() if known[0] >= oldest}
            self._known[name] = time.monotonic(), source
        return source

    async def family(self, name: str) -> str | None:
        """The `model_type` of the model's config; None where its files are not here and its name is not well known."""
        source = await self.source(name)
        return await asyncio.to_thread(family_of, source)

    async def why_not_on_cpu(self, spec: JobSpec) -> str | None:
        """Why the job runs on a CPU only when asked for, or never; None when it is small or has no model."""
        if isinstance(spec, FinetuneSpec | PlanSpec) and support.why_not_device(spec.config, "cpu"):
            return BITS_NEED_GPU
        name = await self._name(spec)
        if name is None:
            return None
        try:
            source = await self.source(name)
        except InvalidInput:  # a folder that went away after the job was accepted: the recipe will say so
            return None
        if source.parameters is None:  # a folder without readable weights fails at once, on a CPU as well
            return SIZE_UNKNOWN if source.origin is Origin.HUB else None
        return TOO_LARGE_FOR_CPU if source.parameters >= CPU_LIMIT_PARAMETERS else None

    async def needs(self, spec: JobSpec) -> Needs:
        """The device memory the job needs, by its model's dimensions; not known of a model whose dimensions are not.

        Of a training, and of the probe of one: by its plan's arithmetic, corrected as the plan is.
        """
        if slot_of(spec) is Slot.CPU:
            return NOTHING
        if isinstance(spec, FinetuneSpec | PlanSpec):
            reserving = await self.reserving(spec.config.model_name)
            if reserving is None:
                return Needs()
            alone = msgspec.structs.replace(spec.config, num_processes=1)
            config = alone if isinstance(spec, PlanSpec) else spec.config  # a probe is one process
            return Needs(*(reserving.size_bytes(config, device) for device in _DEVICES))
        shape = await self._shape(await self._name(spec))
        if shape is None:
            return Needs()
        length = spec.max_length if isinstance(spec, EvaluateSpec) else _ANSWERED_LENGTH
        return Needs(
            *(inference_reserve_bytes(shape, rows=_ANSWERED_ROWS, length=length, device=device) for device in _DEVICES)
        )

    async def reserving(self, name: str) -> Reserving | None:
        """What trainings of a model are given; None of one whose dimensions are not known."""
        shape = await self._shape(name)
        if shape is None:
            return None
        runs = await self._runs()
        factors = {device: calibration.largest_factor(runs, device, shape.family) for device in _DEVICES}
        return Reserving(shape=shape, factors=factors)

    async def _shape(self, name: str | None) -> ModelShape | None:
        try:
            return await asyncio.to_thread(_shape, await self.source(name)) if name is not None else None
        except InvalidInput:  # a folder that went away: as above
            return None

    async def _runs(self) -> list[Run]:
        """Completed trainings, the newest first; looked up again now and then."""
        at, runs = self._learnt
        if time.monotonic() - at >= _FRESH_S:
            runs = calibration.runs_of(await self._ledger.completed(_LOOKED_AT, (Kind.FINETUNE,)))
            self._learnt = time.monotonic(), runs
        return runs

    async def _name(self, spec: JobSpec) -> str | None:
        if isinstance(spec, FinetuneSpec | PlanSpec):
            return spec.config.model_name
        if not isinstance(spec, EvaluateSpec | GenerateSpec):
            return None
        if spec.model_name is not None:
            return spec.model_name
        origin = await self._ledger.job(spec.job_id or spec.export_id or "")
        if origin is None:
            return None
        training = await self._ledger.job(origin.spec.job_id) if isinstance(origin.spec, ExportSpec) else origin
        return training.spec.config.model_name if training and isinstance(training.spec, FinetuneSpec) else None


def _shape(source: ModelSource) -> ModelShape | None:
    """The dimensions of a model, with counted parameters where its name is well known."""
    if source.origin is not Origin.FOLDER:
        return known_shape(source.location) or known_shape(source.name)
    config = config_of(source)
    return None if config is None else shape_of(config)
