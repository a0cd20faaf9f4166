"""What the rows of a run hold, found out before the first step: too long rows, missing images.

Called by the recipe finetune while it loads, so that a run does not end after hours for what was there to see, and by
the recipe preview, which shows some of it.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gpu_runner import images
from gpu_runner.rows import Row, Rows
from gpu_runner.training.encoding import RowEncoder, too_long
from gpu_runner.training.selection import Selection
from jobs.errors import DatasetInvalid

MOST_ROWS = 20_000  # of a larger set that many are looked at, evenly spaced: about ten seconds
_NAMED = 10  # row ids in a message
_KEPT = 100  # of the longest rows


@dataclass
class Survey:
    """`truncated` rows of `looked_at` are longer than max_length; `longest` is in tokens, images included, and so are
    the `lengths` of the rows looked at, in their order.

    `by_length` are the indices of the longest rows, the longest first; of equals the first.
    """

    looked_at: int = 0
    truncated: int = 0
    longest: int = 0
    lengths: list[int] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    nothing_left: list[str] = field(default_factory=list)
    by_length: list[int] = field(default_factory=list)


def survey(chosen: Selection, encoder: RowEncoder, beat: Callable[[], None] = lambda: None) -> Survey:
    """Look at every chosen row's length and image, reading no picture; `beat` is called for each and may end it.

    Raises:
        DatasetInvalid: there are no rows, images are missing, or rows would have nothing left to learn.
    """
    found, rows = Survey(), chosen.rows
    for index in chosen.indices:
        beat()
        _look_at(rows, rows[index], encoder, found)
    longest = heapq.nlargest(_KEPT, range(len(found.lengths)), key=found.lengths.__getitem__)
    found.by_length = [chosen.indices[at] for at in longest]
    if not found.looked_at:
        raise DatasetInvalid(f"{rows.name} has no rows: convert or split again.")
    if found.without_image:
        who = _listed(found.without_image)
        raise DatasetInvalid(f"{who} of {rows.name}: the image file is missing. Convert the export again.")
    if found.nothing_left:
        raise DatasetInvalid(too_long(_listed(found.nothing_left), encoder.max_length))
    return found


def lengths_of_all(found: Survey, chosen: Selection) -> list[int]:
    """A length for every row of the set, whose `chosen` rows were surveyed: its own, or that of the one surveyed
    before it, which is of the same video as a rule."""
    at = np.searchsorted(np.array(chosen.indices), np.arange(len(chosen.rows)), side="right") - 1
    lengths: list[int] = np.array(found.lengths)[at].tolist()
    return lengths


def _look_at(rows: Rows, row: Row, encoder: RowEncoder, found: Survey) -> None:
    found.looked_at += 1
    if not _has_its_images(rows, row):
        found.without_image.append(row.id)
    length = _length(rows, row, encoder)
    found.longest = max(found.longest, length)
    found.lengths.append(length)
    if length > encoder.max_length:
        found.truncated += 1
        if _length(rows, row, encoder, prompt_only=True) >= encoder.max_length:
            found.nothing_left.append(row.id)


def _length(rows: Rows, row: Row, encoder: RowEncoder, *, prompt_only: bool = False) -> int:
    """Tokens of a row, from its text and its pictures' sizes; within a few of the exact count."""
    tokens = encoder.text_tokens(row, prompt_only=prompt_only)
    sizes = _sizes(rows, row)
    return tokens + sum(encoder.image_length(size, among=len(sizes)) - 1 for size in sizes)


def _sizes(rows: Rows, row: Row) -> list[tuple[int, int]]:
    """Of its pictures, as the row states it or else from the files' headers; what cannot be read is a point."""
    if len(row.pictures) == 1 and row.width > 0 and row.height > 0:
        return [(row.width, row.height)]
    return [_size(rows, name) for name in row.pictures]


def _size(rows: Rows, name: str) -> tuple[int, int]:
    try:
        file = rows.image_file(name)
        return images.read_size(file) if file is not None else (1, 1)
    except images.BadImage:
        return 1, 1


def _has_its_images(rows: Rows, row: Row) -> bool:
    try:
        files = [rows.image_file(name) for name in row.pictures]
    except images.BadImage:
        return False
    return all(file is None or file.is_file() for file in files)


def _listed(row_ids: list[str]) -> str:
    more = len(row_ids) - _NAMED
    return f"Rows {', '.join(row_ids[:_NAMED])}" + (f" and {more} more" if more > 0 else "")
