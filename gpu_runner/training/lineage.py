"""What a job was asked to do, as its folder tells: where exported adapters come from.

Used by `models`, and by the exporters.
"""

import msgspec

from jobs.commands import Start
from jobs.paths import DataRoot
from jobs.specs import ExportSpec, FinetuneSpec, JobSpec


def spec_of(root: DataRoot, job_id: str) -> JobSpec | None:
    """The spec of a job's newest attempt; None when its folder is gone."""
    start = next((attempt.start for attempt in root.attempts(job_id) if attempt.start.is_file()), None)
    return msgspec.json.decode(start.read_bytes(), type=Start).spec if start else None


def is_of_qlora(root: DataRoot, export_id: str) -> bool:
    """Whether an export's weights were trained on a 4-bit base; False where that is not known any more."""
    export = spec_of(root, export_id)
    trained = spec_of(root, export.job_id) if isinstance(export, ExportSpec) else None
    return isinstance(trained, FinetuneSpec) and trained.config.use_qlora
