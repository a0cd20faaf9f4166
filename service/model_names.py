"""What a job's model name means on this host: for the refusal at submit, and for how large the model is.

`dispatch.py` and `reconcile.py` ask. A job that uses what another job trained has that job's model.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from jobs.errors import InvalidInput
from jobs.footprint import known_config
from jobs.models import CPU_LIMIT_PARAMETERS, ModelSource, Origin, resolve
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import EvaluateSpec, ExportSpec, FinetuneSpec, GenerateSpec, JobSpec, PlanSpec
from service.ledger import Ledger
from service.placement import SIZE_UNKNOWN, TOO_LARGE_FOR_CPU

_REMEMBERED_S = 1.0  # many jobs submitted together name the same model


def model_roots(settings: Settings, root: DataRoot) -> list[Path]:
    """Where models may lie: the data root's models folder first, then the further roots of the settings."""
    return [root.models, *(Path(folder) for folder in settings.model_roots)]


def _family(source: ModelSource) -> str | None:
    config: dict[str, Any] | None = known_config(source.location) or known_config(source.name)
    if source.origin is Origin.FOLDER:
        try:
            config = msgspec.json.decode(Path(source.location, "config.json").read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # the recipe says what is wrong with it
    family = (config or {}).get("model_type")
    return family if isinstance(family, str) else None


class ModelNames:
    """Looks names up below the model roots."""

    def __init__(self, settings: Settings, root: DataRoot, ledger: Ledger) -> None:
        self._roots = model_roots(settings, root)
        self._ledger = ledger
        self._known: dict[str, tuple[float, ModelSource]] = {}

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
        return await asyncio.to_thread(_family, source)

    async def why_not_on_cpu(self, spec: JobSpec) -> str | None:
        """Why the job's model runs on a CPU only when that is asked for; None when it is small or there is none."""
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
