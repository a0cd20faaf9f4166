"""What a finetune job left behind: its configuration, its result, and the checkpoint to export.

Called by the recipe `export`; the model card tells these facts.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpu_runner import journal
from gpu_runner.rows import open_rows
from gpu_runner.training import checkpoints, models
from gpu_runner.training.checkpoints import Checkpoint
from jobs import events
from jobs.commands import Start
from jobs.errors import JobFailed, ModelUnavailable
from jobs.models import ModelSource
from jobs.paths import AttemptFolder, DataRoot
from jobs.results import FinetuneResult
from jobs.settings import Settings
from jobs.specs import FinetuneSpec

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TrainedJob:
    """`is_best` tells whether the checkpoint is the one with the best evaluation, else it is the newest.

    `source` is the base model; `result` is None for a job whose journal has no end.
    """

    job_id: str
    spec: FinetuneSpec
    result: FinetuneResult | None
    checkpoint: Checkpoint
    is_best: bool
    source: ModelSource

    @property
    def name(self) -> str:
        return self.spec.experiment_name or self.job_id

    @property
    def method(self) -> str:
        return self.checkpoint.manifest.method

    @property
    def checkpoint_said(self) -> str:
        which = "the one with the best evaluation" if self.is_best else "the newest complete one"
        return f"step {self.checkpoint.step}, {which}"


def find(root: DataRoot, settings: Settings, job_id: str) -> TrainedJob:
    """The best checkpoint of a job where it names one that verifies, else its newest verified one.

    Raises:
        ModelUnavailable: no checkpoint of the job is whole, or its folder was removed.
    """
    attempts = root.attempts(job_id)
    result = next(filter(None, map(_result_of, attempts)), None)
    best = _best_of(root, result)
    checkpoint = best or checkpoints.newest_verified(root, job_id)
    if checkpoint is None:
        raise ModelUnavailable(f"Job {job_id} has no complete checkpoint: train it again, then export it.")
    return TrainedJob(
        job_id=job_id,
        spec=_spec_of(job_id, attempts),
        result=result,
        checkpoint=checkpoint,
        is_best=best is not None,
        source=models.source_of(checkpoint.manifest.model_name, root, settings),
    )


@dataclass(frozen=True)
class Data:
    """The rows a job was given, as they lie there now. `sha256` covers the files that hold the rows."""

    name: str
    rows: int
    sha256: str


def data(root: DataRoot, name: str) -> Data | None:
    """What is known of a dataset or split; None when it is not there any more."""
    path = root.path_of(name)
    files = [path] if path.is_file() else sorted([*path.glob("*.jsonl"), *path.glob("*.arrow")])
    digest = hashlib.sha256()
    try:
        rows = len(open_rows(root, name))
        for block in _blocks(files):
            digest.update(block)
    except (JobFailed, OSError):
        return None
    return Data(name, rows, digest.hexdigest())


def _blocks(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")


def _spec_of(job_id: str, attempts: Sequence[AttemptFolder]) -> FinetuneSpec:
    start = next((attempt.start for attempt in attempts if attempt.start.is_file()), None)
    spec = msgspec.json.decode(start.read_bytes(), type=Start).spec if start else None
    if not isinstance(spec, FinetuneSpec):
        raise ModelUnavailable(f"Job {job_id} is no training, or its folder is not whole: train it again.")
    return spec


def _result_of(attempt: AttemptFolder) -> FinetuneResult | None:
    last = journal.last_event(attempt.journal)
    result = last.result if isinstance(last, events.JobCompleted) else None
    return result if isinstance(result, FinetuneResult) else None


def _best_of(root: DataRoot, result: FinetuneResult | None) -> Checkpoint | None:
    if result is None or not result.best_checkpoint_path:
        return None
    return checkpoints.verify(root.path_of(result.best_checkpoint_path))
