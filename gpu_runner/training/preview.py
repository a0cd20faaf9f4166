"""What a training would learn from a row, piece by piece, as people read it. Called by the recipe preview."""

from itertools import groupby

import torch

from gpu_runner.rows import Rows
from gpu_runner.training.encoding import NOT_TRAINED, Encoded, RowEncoder
from gpu_runner.training.selection import everything, image_names
from jobs.paths import DataRoot
from jobs.results import Piece, PreviewedRow, PreviewReason

_TEXT, _TRAINED, _PICTURE = range(3)


def preview(rows: Rows, index: int, reason: PreviewReason, encoder: RowEncoder, root: DataRoot) -> PreviewedRow:
    """A row as it would be trained on.

    Raises:
        DatasetInvalid, ModelUnavailable: as `RowEncoder.encode`.
    """
    row, images = everything(rows).open(index)
    encoded = encoder.encode(row, images)
    return PreviewedRow(
        row_id=row.id,
        reason=reason,
        pieces=tuple(_pieces(encoded, encoder)),
        tokens=len(encoded.input_ids),
        tokens_uncut=encoded.whole_length,
        trained_tokens=int((encoded.labels != NOT_TRAINED).sum()),
        image_tokens=encoded.image_tokens,
        images=image_names(root, rows, row)[: encoded.images],
        is_truncated=encoded.is_truncated,
    )


def _pieces(encoded: Encoded, encoder: RowEncoder) -> list[Piece]:
    """The row's tokens in order: text that is trained, text that is not, pictures."""
    kinds = torch.where(encoder.is_placeholder(encoded.input_ids), _PICTURE, (encoded.labels != NOT_TRAINED).long())
    pieces, at = list[Piece](), 0
    for kind, run in groupby(kinds.tolist()):
        count = len(list(run))
        ids = encoded.input_ids[at : at + count]
        at += count
        if kind == _PICTURE:
            pieces.append(Piece(text="", tokens=count, is_image=True))
        else:
            pieces.append(Piece(text=encoder.tokenizer.decode(ids), tokens=count, is_trained=kind == _TRAINED))
    return pieces
