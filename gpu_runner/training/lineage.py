"""What a job was asked to do, as its folder tells: where exported adapters come from, how pictures were
shown.

Used by `models`, by the recipes evaluate and generate, and by the exporters.
"""

from typing import Literal

import msgspec

from jobs.commands import Start
from jobs.paths import DataRoot
from jobs.specs import ExportSpec, FinetuneSpec, JobSpec


def spec_of(root: DataRoot, job_id: str) -> JobSpec | None:
    """The spec of a job's newest attempt; None when its folder is gone."""
    start = next((attempt.start for attempt in root.attempts(job_id) if attempt.start.is_file()), None)
    return msgspec.json.decode(start.read_bytes(), type=Start).spec if start else None


def max_pixels(root: DataRoot, job_id: str | None, export_id: str | None = None) -> int | None:
    """The cap a training put on its pictures, so that they are shown to its model as it knows them."""
    export = spec_of(root, export_id) if export_id is not None else None
    job_id = export.job_id if isinstance(export, ExportSpec) else job_id
    trained = spec_of(root, job_id) if job_id is not None else None
    return trained.config.max_pixels if isinstance(trained, FinetuneSpec) else None


def bits(root: DataRoot, export_id: str) -> Literal[4, 8] | None:
    """Of the base an export's weights were trained on; None for a whole one, and where that is not known any more."""
    export = spec_of(root, export_id)
    trained = spec_of(root, export.job_id) if isinstance(export, ExportSpec) else None
    return trained.config.qlora_bits if isinstance(trained, FinetuneSpec) and trained.config.use_qlora else None
