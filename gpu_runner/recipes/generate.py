"""generate: a model answers a few rows of a dataset."""

import torch

from gpu_runner.rows import Rows, open_rows
from gpu_runner.training import device, lineage, models
from gpu_runner.training.generation import answer_rows
from gpu_runner.training.selection import Selection
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid
from jobs.results import GenerateResult
from jobs.specs import GenerateSpec

MAX_LENGTH = 32768  # a question is never cut; the model's own limit is far below
BATCH_ROWS = 4


def run(work: Work[GenerateSpec]) -> GenerateResult:
    """Raises DatasetInvalid, ModelUnavailable, NoCapacity or OutOfMemory, or Stopped when asked to end."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        return _generate(work)


def _generate(work: Work[GenerateSpec]) -> GenerateResult:
    work.journal.phase("loading")
    chosen = _chosen(open_rows(work.root, work.spec.data_path), work.spec)
    loaded = models.load_named(work.spec, work.root, work.settings, work.device)
    work.journal.phase("generating")
    answers = answer_rows(
        loaded,
        loaded.encoder(MAX_LENGTH, lineage.max_pixels(work.root, work.spec.job_id, work.spec.export_id)),
        chosen,
        work.root,
        max_new_tokens=work.spec.max_new_tokens,
        batch_size=loaded.batch_rows(BATCH_ROWS),
        beat=work.stop.check,
    )
    return GenerateResult(answers=tuple(answers))


def _chosen(rows: Rows, spec: GenerateSpec) -> Selection:
    """The rows named, or the first ones. Raises DatasetInvalid for a row that is not there."""
    if not spec.rows:
        return Selection(rows, tuple(range(min(spec.first_rows, len(rows)))))
    found = {row_id: rows.find(row_id) for row_id in spec.rows}
    absent = [row_id for row_id, index in found.items() if index is None]
    if absent:
        raise DatasetInvalid(f"{rows.name} has no row {absent[0]!r}: list its rows and choose among them.")
    return Selection(rows, tuple(index for index in found.values() if index is not None))
