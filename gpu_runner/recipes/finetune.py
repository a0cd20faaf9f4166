"""finetune: a model learns from the rows of a dataset, fully or through LoRA adapters.

An interrupted or paused run goes on from the newest whole checkpoint of its earlier attempts.
"""

import torch
from msgspec.structs import replace

from gpu_runner.rows import Rows, open_rows
from gpu_runner.training import checkpoints, counting, device, inheritance, models, ranks, room, run_state, trainable
from gpu_runner.training.adapters import parameters_by_part
from gpu_runner.training.checkpoints import Checkpoint
from gpu_runner.training.device import Compute
from gpu_runner.training.encoding import RowEncoder
from gpu_runner.training.evaluation import Validation
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.training.models import Loaded
from gpu_runner.training.ranks import Ranks
from gpu_runner.training.selection import everything, spread
from gpu_runner.training.survey import MOST_ROWS, Survey, lengths_of_all, survey
from gpu_runner.work import Work
from jobs.results import FinetuneResult
from jobs.specs import FinetuneSpec


def run(work: Work[FinetuneSpec]) -> FinetuneResult:
    """Raises DatasetInvalid, ModelUnavailable, NoCapacity, OutOfMemory or DiskFull, or Stopped when asked to end."""
    with device.errors_in_our_words(), ranks.led(work) as crew:
        torch.set_num_threads(max(1, work.cores // crew.count))
        return _finetune(work, crew)


def follow(work: Work[FinetuneSpec], crew: Ranks) -> None:
    """Compute one process's part of a run that another one leads. Raises as `run`."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        config = work.spec.config
        run_state.seed_everything(config.seed)
        training = open_rows(work.root, config.train_data_path)
        begin = _given(crew)
        loaded = _load(work, _compute(work), begin or _continued_from(work))
        loop = TrainingLoop(
            work=work,
            loaded=loaded,
            encoder=loaded.encoder(_max_length(work, loaded), config.max_pixels),
            training=everything(training),
            lengths=crew.given_by_first([]),
            validation=None,
            begin=begin,
            ranks=crew,
        )
        loop.follow()


def _given(crew: Ranks) -> Checkpoint | None:
    """The checkpoint that rank 0 goes on from; it moves those of earlier attempts, so nobody else may look for it."""
    folder = crew.given_by_first(None)
    return checkpoints.verify(folder) if folder is not None else None


def _finetune(work: Work[FinetuneSpec], crew: Ranks) -> FinetuneResult:
    config = work.spec.config
    work.journal.phase("loading")
    run_state.seed_everything(config.seed)
    compute = _compute(work)
    training = open_rows(work.root, config.train_data_path)
    validation = open_rows(work.root, config.val_data_path) if config.val_data_path else None

    resumed = inheritance.take_over(work)
    crew.given_by_first(resumed.folder if resumed else None)
    loaded = _load(work, compute, resumed or _continued_from(work))
    encoder = loaded.encoder(_max_length(work, loaded), config.max_pixels)
    measured = Validation(validation, encoder, work.root, config.batch_size) if validation else None
    found, lengths = _look_at(work, training, measured, encoder)

    predicted = counting.predicted_bytes(config, loaded, found)
    loop = TrainingLoop(
        work=work,
        loaded=loaded,
        encoder=encoder,
        training=everything(training),
        lengths=crew.given_by_first(lengths),
        validation=measured,
        begin=resumed,
        ranks=crew,
    )
    if resumed is None:
        room.check_disk_for_checkpoints(work.root, loaded, config, loop.plan.total_steps)
    loop.run()
    return replace(_result(work, loop, loaded), predicted_memory_bytes=predicted)


def _compute(work: Work[FinetuneSpec]) -> Compute:
    config = work.spec.config
    compute, notes = device.for_training(work.device, config)
    for note in notes:
        work.journal.note(note, "setting_changed")
    if config.use_qlora and not config.use_lora:
        work.journal.note("use_qlora implies use_lora: adapters are trained on the quantised base.", "setting_changed")
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
    checkpoint = checkpoints.to_continue(work.root, other, work.spec.config.continue_from_step)
    trainable.check_fits(checkpoint, work.spec.config, work.root, work.settings)
    return checkpoint


def _max_length(work: Work[FinetuneSpec], loaded: Loaded) -> int:
    """What was asked; more than the model was made for is possible and rarely good, so it is said."""
    asked = work.spec.config.max_length
    if loaded.longest is not None and asked > loaded.longest:
        work.journal.note(f"max_length {asked} is above the model's own {loaded.longest}.", "max_length")
    return asked


def _look_at(
    work: Work[FinetuneSpec], training: Rows, validation: Validation | None, encoder: RowEncoder
) -> tuple[Survey, list[int]]:
    """Find now what would end the run later; gives the length of every row beside it. Raises DatasetInvalid."""
    chosen = spread(training, MOST_ROWS)
    found = survey(chosen, encoder)
    if validation is not None:
        survey(validation.rows(), encoder)
    if found.truncated:
        work.journal.note(
            f"{found.truncated} of {found.looked_at} rows are longer than max_length {encoder.max_length} and lose the "
            f"end of their answer; the longest has {found.longest} tokens.",
            "rows_truncated",
        )
    return found, [min(length, encoder.max_length) for length in lengths_of_all(found, chosen)]


def _result(work: Work[FinetuneSpec], loop: TrainingLoop, loaded: Loaded) -> FinetuneResult:
    state = loop.state
    return FinetuneResult(
        steps=state.step,
        final_train_loss=state.train_loss,
        best_eval_loss=state.best_eval_loss,
        best_eval_accuracy=state.best_eval_accuracy,
        best_scores=state.best_scores,
        checkpoint_path=work.root.name_of(loop.checkpoint.folder) if loop.checkpoint else "",
        best_checkpoint_path=state.best_checkpoint,
        peak_memory_bytes=device.peak_memory_bytes(loaded.compute.device),
        tokens_per_second=loop.tokens_per_second,
        family=str(loaded.model.config.model_type),
        device_name=device.name(loaded.compute.device),
        trainable_parameters=parameters_by_part(loaded.model, trainable_only=True),
        total_parameters=parameters_by_part(loaded.model),
    )
