"""preview: what a training would learn from its first and its longest rows, piece by piece.

Only the model's tokeniser and processor are loaded, none of its weights.
"""

import torch

from gpu_runner.rows import Rows, open_rows
from gpu_runner.training import device, models
from gpu_runner.training.encoding import RowEncoder
from gpu_runner.training.preview import preview
from gpu_runner.training.selection import spread
from gpu_runner.training.survey import Survey, survey
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid
from jobs.results import PreviewReason, PreviewResult
from jobs.specs import PreviewSpec

MOST_ROWS = 5000  # whose lengths are compared: a few seconds


def run(work: Work[PreviewSpec]) -> PreviewResult:
    """Raises DatasetInvalid or ModelUnavailable, as the training would."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        return _preview(work)


def _preview(work: Work[PreviewSpec]) -> PreviewResult:
    config = work.spec.config
    work.journal.phase("loading")
    rows = open_rows(work.root, config.train_data_path)
    source = models.source_of(config.model_name, work.root, work.settings)
    encoder = models.load_encoder(source, config.max_length, config.max_pixels, offline=work.settings.hf_offline)
    work.journal.phase("reading")
    found = survey(spread(rows, MOST_ROWS), encoder, work.stop.check)
    return PreviewResult(
        rows=tuple(preview(rows, index, why, encoder, work.root) for index, why in _chosen(work, rows, found)),
        looked_at=found.looked_at,
        truncated=found.truncated,
        longest_tokens=found.longest,
        max_length=encoder.max_length,
        message=_message(found, encoder),
    )


def _chosen(work: Work[PreviewSpec], rows: Rows, found: Survey) -> list[tuple[int, PreviewReason]]:
    """The rows that were asked for, else the first ones and the longest ones of those looked at."""
    if not work.spec.rows:
        count = work.spec.each
        first = range(min(count, len(rows)))
        longest = [index for index in found.by_length[: 2 * count] if index not in first]
        return [*((index, "first") for index in first), *((index, "longest") for index in longest[:count])]
    chosen: list[tuple[int, PreviewReason]] = []
    for row_id in work.spec.rows:
        index = rows.find(row_id)
        if index is None:
            raise DatasetInvalid(f"{rows.name} has no row {row_id!r}: list its rows and choose among them.")
        chosen.append((index, "asked"))
    return chosen


def _message(found: Survey, encoder: RowEncoder) -> str:
    cut = (
        f"{found.truncated} of them are longer than max_length {encoder.max_length} and lose the end of their answer"
        if found.truncated
        else f"all of them fit into max_length {encoder.max_length}"
    )
    return f"{found.looked_at} rows were looked at: {cut}; the longest has {found.longest} tokens."
