"""finetune: a model learns from the rows of a dataset, fully or through LoRA adapters.

An interrupted or paused run goes on from the newest whole checkpoint of its earlier attempts.
"""

import torch

from gpu_runner.rows import Rows, open_rows
from gpu_runner.training import checkpoints, device, inheritance, models, run_state, trainable
from gpu_runner.training.adapters import parameters_by_part
from gpu_runner.training.checkpoints import Checkpoint
from gpu_runner.training.device import Compute
from gpu_runner.training.encoding import RowEncoder
from gpu_runner.training.evaluation import Validation
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.training.models import Loaded
from gpu_runner.training.selection import everything, spread
from gpu_runner.training.survey import MOST_ROWS, survey
from gpu_runner.work import Work
from jobs.results import FinetuneResult
from jobs.specs import FinetuneSpec


def run(work: Work[FinetuneSpec]) -> FinetuneResult:
    """Raises DatasetInvalid, ModelUnavailable, NoCapacity, OutOfMemory or DiskFull, or Stopped when asked to end."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        return _finetune(work)


def _finetune(work: Work[FinetuneSpec]) -> FinetuneResult:
    config = work.spec.config
    work.journal.phase("loading")
    run_state.seed_everything(config.seed)
    compute = _compute(work)
    training = open_rows(work.root, config.train_data_path)
    validation = open_rows(work.root, config.val_data_path) if config.val_data_path else None

    resumed = inheritance.take_over(work)
    loaded = _load(work, compute, resumed or _continued_from(work))
    encoder = loaded.encoder(_max_length(work, loaded))
    measured = Validation(validation, encoder, work.root, config.batch_size) if validation else None
    _look_at(work, training, measured, encoder)

    loop = TrainingLoop(
        work=work,
        loaded=loaded,
        encoder=encoder,
        training=everything(training),
        validation=measured,
        begin=resumed,
    )
    loop.run()
    return _result(work, loop, loaded)


def _compute(work: Work[FinetuneSpec]) -> Compute:
    compute, notes = device.for_training(work.device, work.spec.config)
    for note in notes:
        work.journal.note(note, "setting_changed")
    if work.spec.config.use_qlora and not work.spec.config.use_lora:
        work.journal.note("use_qlora implies use_lora: adapters are trained on the 4-bit base.", "setting_changed")
    return compute


def _load(work: Work[FinetuneSpec], compute: Compute, begin: Checkpoint | None) -> Loaded:
    config, offline = work.spec.config, work.settings.hf_offline
    source = models.source_of(config.model_name, work.root, work.settings)
    if source.note:
        work.journal.note(source.note, "model_twin")
    models.check_capacity(source, work.device, config.device, offline=offline)
    return trainable.load(source, config, compute, begin, offline=offline)


def _continued_from(work: Work[FinetuneSpec]) -> Checkpoint | None:
    """The checkpoint of another job that gives the first weights."""
    other = work.spec.config.continue_from
    if other is None:
        return None
    checkpoint = checkpoints.of_job(work.root, other)
    trainable.check_fits(checkpoint, work.spec.config, work.root, work.settings)
    return checkpoint


def _max_length(work: Work[FinetuneSpec], loaded: Loaded) -> int:
    """What was asked; more than the model was made for is possible and rarely good, so it is said."""
    asked = work.spec.config.max_length
    if loaded.longest is not None and asked > loaded.longest:
        work.journal.note(f"max_length {asked} is above the model's own {loaded.longest}.", "max_length")
    return asked


def _look_at(work: Work[FinetuneSpec], training: Rows, validation: Validation | None, encoder: RowEncoder) -> None:
    """Find now what would end the run later. Raises DatasetInvalid."""
    found = survey(spread(training, MOST_ROWS), encoder)
    if validation is not None:
        survey(validation.rows(), encoder)
    if found.truncated:
        work.journal.note(
            f"{found.truncated} of {found.looked_at} rows are longer than max_length {encoder.max_length} and lose the "
            f"end of their answer; the longest has {found.longest} tokens.",
            "rows_truncated",
        )


def _result(work: Work[FinetuneSpec], loop: TrainingLoop, loaded: Loaded) -> FinetuneResult:
    state = loop.state
    return FinetuneResult(
        steps=state.step,
        final_train_loss=state.train_loss,
        best_eval_loss=state.best_eval_loss,
        best_eval_accuracy=state.best_eval_accuracy,
        checkpoint_path=work.root.name_of(loop.checkpoint.folder) if loop.checkpoint else "",
        best_checkpoint_path=state.best_checkpoint,
        peak_memory_bytes=device.peak_memory_bytes(loaded.compute.device),
        device_name=device.name(loaded.compute.device),
        trainable_parameters=parameters_by_part(loaded.model, trainable_only=True),
        total_parameters=parameters_by_part(loaded.model),
    )
