"""What a finetune job left behind: its configuration, its result, and the checkpoint to export.

Called by the recipe `export`; the model card tells these facts.
"""

from dataclasses import dataclass

from gpu_runner import journal
from gpu_runner.training import checkpoints, lineage, models
from gpu_runner.training.checkpoints import Checkpoint
from jobs import events
from jobs.errors import ModelUnavailable
from jobs.models import ModelSource
from jobs.paths import AttemptFolder, DataRoot
from jobs.results import FinetuneResult
from jobs.settings import Settings
from jobs.specs import FinetuneSpec


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
    def bits(self) -> int:
        """Of the base it was trained on, with method qlora."""
        return self.checkpoint.manifest.bits

    @property
    def checkpoint_said(self) -> str:
        which = "the one with the best evaluation" if self.is_best else "the newest complete one"
        return f"step {self.checkpoint.step}, {which}"


def find(root: DataRoot, settings: Settings, job_id: str) -> TrainedJob:
    """What a job left, with the checkpoint that stands for it.

    Raises:
        ModelUnavailable: no checkpoint of the job is whole, or its folder was removed.
    """
    result = next(filter(None, map(_result_of, root.attempts(job_id))), None)
    checkpoint = checkpoints.of_job(root, job_id)
    return TrainedJob(
        job_id=job_id,
        spec=_spec_of(root, job_id),
        result=result,
        checkpoint=checkpoint,
        is_best=checkpoint.folder == checkpoints.best_folder(root, job_id),
        source=models.source_of(checkpoint.manifest.model_name, root, settings),
    )


def _spec_of(root: DataRoot, job_id: str) -> FinetuneSpec:
    spec = lineage.spec_of(root, job_id)
    if not isinstance(spec, FinetuneSpec):
        raise ModelUnavailable(f"Job {job_id} is no training, or its folder is not whole: train it again.")
    return spec


def _result_of(attempt: AttemptFolder) -> FinetuneResult | None:
    last = journal.last_event(attempt.journal)
    result = last.result if isinstance(last, events.JobCompleted) else None
    return result if isinstance(result, FinetuneResult) else None
