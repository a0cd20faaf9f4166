"""evaluate: a model's loss and answers on rows, beside what the best fixed answer would score."""

import itertools

import torch

from gpu_runner.rows import open_rows
from gpu_runner.training import device, generation, lineage, models, scoring
from gpu_runner.training.evaluation import mean_loss
from gpu_runner.training.generation import Beat
from gpu_runner.training.selection import Selection, spread
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid
from jobs.results import Answer, EvaluateResult
from jobs.specs import EvaluateSpec

BATCH_ROWS = 8
SHOWN_ANSWERS = 50  # of all answers, how many the result carries


def run(work: Work[EvaluateSpec]) -> EvaluateResult:
    """Raises DatasetInvalid, ModelUnavailable, NoCapacity or OutOfMemory, or Stopped when asked to end."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        return _evaluate(work)


def _evaluate(work: Work[EvaluateSpec]) -> EvaluateResult:
    spec = work.spec
    work.journal.phase("loading")
    chosen = spread(open_rows(work.root, spec.data_path), spec.max_rows, grey=spec.grey_images)
    if not len(chosen):
        raise DatasetInvalid(f"{spec.data_path} has no rows: convert or split again.")
    loaded = models.load_named(spec, work.root, work.settings, work.device)
    encoder = loaded.encoder(spec.max_length, lineage.max_pixels(work.root, spec.job_id, spec.export_id))
    work.journal.phase("evaluating")
    batch_rows = loaded.batch_rows(BATCH_ROWS)
    beat = _beat(work, batches=2 * -(-len(chosen) // batch_rows))
    loss = mean_loss(loaded, encoder, chosen, batch_rows, beat)
    answers = generation.answer_rows(
        loaded,
        encoder,
        chosen,
        work.root,
        max_new_tokens=spec.max_new_tokens,
        batch_size=batch_rows,
        beat=beat,
    )
    return _result(chosen, loss, answers)


def _beat(work: Work[EvaluateSpec], batches: int) -> Beat:
    """Counts batches: each row is seen twice, for the loss and for its answer."""
    numbers = itertools.count(1)

    def beat() -> None:
        work.stop.check()
        work.journal.progress(next(numbers), batches)

    return beat


def _result(chosen: Selection, loss: float, answers: list[Answer]) -> EvaluateResult:
    constant = scoring.constant_accuracy(chosen.rows[index] for index in chosen.indices)
    scores = scoring.scores(answers)
    return EvaluateResult(
        rows=len(answers),
        loss=loss,
        label_accuracy=None if constant is None else scores.label_accuracy,
        exact_match=scores.exact_match or 0.0,
        json_validity=scores.json_validity,
        box_iou=scores.box_iou,
        box_iou_50=scores.box_iou_50,
        constant_accuracy=constant,
        grey_images=chosen.grey,
        answers=tuple(answers[:SHOWN_ANSWERS]),
    )
