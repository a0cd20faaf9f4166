"""What the rows of a run hold, found out before the first step: too long rows, missing images.

Called by the recipe finetune while it loads, so that a run does not end after hours for what was there to see.
"""

from dataclasses import dataclass, field

from PIL import Image

from gpu_runner import images
from gpu_runner.rows import Row, Rows
from gpu_runner.training.encoding import RowEncoder, too_long
from gpu_runner.training.selection import Selection
from jobs.errors import DatasetInvalid

MOST_ROWS = 20_000  # of a larger set that many are looked at, evenly spaced: about ten seconds
_NAMED = 10  # row ids in a message


@dataclass
class Survey:
    """`truncated` rows of `looked_at` are longer than max_length; `longest` is in tokens, images included, and so are
    the `lengths` of the rows looked at, in their order."""

    looked_at: int = 0
    truncated: int = 0
    longest: int = 0
    lengths: list[int] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    nothing_left: list[str] = field(default_factory=list)


def survey(chosen: Selection, encoder: RowEncoder) -> Survey:
    """Look at every chosen row's length and image, reading no picture.

    Raises:
        DatasetInvalid: there are no rows, images are missing, or rows would have nothing left to learn.
    """
    found, rows = Survey(), chosen.rows
    for index in chosen.indices:
        _look_at(rows, rows[index], encoder, found)
    if not found.looked_at:
        raise DatasetInvalid(f"{rows.name} has no rows: convert or split again.")
    if found.without_image:
        who = _listed(found.without_image)
        raise DatasetInvalid(f"{who} of {rows.name}: the image file is missing. Convert the export again.")
    if found.nothing_left:
        raise DatasetInvalid(too_long(_listed(found.nothing_left), encoder.max_length))
    return found


def _look_at(rows: Rows, row: Row, encoder: RowEncoder, found: Survey) -> None:
    found.looked_at += 1
    if not _has_its_image(rows, row):
        found.without_image.append(row.id)
    length = _length(row, encoder)
    found.longest = max(found.longest, length)
    found.lengths.append(length)
    if length > encoder.max_length:
        found.truncated += 1
        if _length(row, encoder, prompt_only=True) >= encoder.max_length:
            found.nothing_left.append(row.id)


def _length(row: Row, encoder: RowEncoder, *, prompt_only: bool = False) -> int:
    """Tokens of a row, from its text and its picture's size; within a few of the exact count."""
    tokens = encoder.text_tokens(row, prompt_only=prompt_only)
    if row.image is None:
        return tokens
    size = (max(1, row.width), max(1, row.height))
    return tokens - 1 + encoder.image_tokens(Image.new("RGB", size))


def _has_its_image(rows: Rows, row: Row) -> bool:
    try:
        file = rows.image_file(row.image) if row.image is not None else None
    except images.BadImage:
        return False
    return file is None or file.is_file()


def _listed(row_ids: list[str]) -> str:
    more = len(row_ids) - _NAMED
    return f"Rows {', '.join(row_ids[:_NAMED])}" + (f" and {more} more" if more > 0 else "")
