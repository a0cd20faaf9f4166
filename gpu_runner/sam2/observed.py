"""One row as the rules of validation see it: its masks decoded, its picture opened, each once.

`observe` is called by the validate recipe for every row; the rules in `rules/` only look.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from gpu_runner.images import BadImage
from gpu_runner.rows import Mask, Row, Rows
from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import BadMask

_HASH_SIDE = 16  # a difference hash of 16 x 16 bits


@dataclass(frozen=True)
class Observed:
    """A row and what its parts really are.

    `masks` holds decoded counts, or why a mask cannot be decoded. `picture` is (width, height), or why the picture
    cannot be used, or None for a row without one. `fingerprint` is equal for pictures that look the same.
    """

    row: Row
    masks: tuple["np.ndarray | BadMask", ...]
    picture: "tuple[int, int] | BadImage | None"
    fingerprint: bytes | None


def observe(rows: Rows, index: int) -> Observed:
    """Raises DatasetInvalid when the row itself cannot be read."""
    row = rows[index]
    decoded = tuple(_decoded(mask) for mask in row.masks)
    if row.image is None:
        return Observed(row, decoded, None, None)
    try:
        picture = rows.read_image(index, row.image)
    except BadImage as error:
        return Observed(row, decoded, error, None)
    return Observed(row, decoded, picture.size, fingerprint(picture))


def fingerprint(picture: Image.Image) -> bytes:
    """A difference hash: whether each cell of a small grey copy is lighter than the one to its right."""
    small = picture.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(small, dtype=np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def _decoded(mask: Mask) -> "np.ndarray | BadMask":
    try:
        counts = masks.read_compressed(mask.counts) if isinstance(mask.counts, str) else masks.read_list(mask.counts)
        masks.check_fits(counts, mask.size)
    except BadMask as error:
        return error
    return counts
