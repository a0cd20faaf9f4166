"""One row as the rules of validation see it: its masks decoded, its picture opened, each once.

`observe` is called by the validate recipe for every row, in several processes; the rules in `rules/` only look, in
one. `glance` is for rows that a conversion has just written. So what is observed is small: no pixels, no run lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from PIL import Image

from gpu_runner.images import BadImage
from gpu_runner.rows import Mask, Row, Rows
from gpu_runner.sam2 import fingerprints, masks, overlays
from gpu_runner.sam2.masks import BadMask, Box, Grid
from gpu_runner.sam2.overlays import Colour

_SEARCHED = 3  # objects of a picture


@dataclass(frozen=True, slots=True)
class SeenMask:
    """What a mask covers: its area in pixels of its grid, as a share of it, and its box in pixels of the row's size."""

    area: int
    share: float
    box: Box


@dataclass(frozen=True, slots=True)
class Observed:
    """A row and what its parts really are.

    `row` is without its masks and attributes. `masks` says what each mask covers, or why it cannot be decoded.
    `picture` is (width, height), or why the picture cannot be used, or None for a row without one. `fingerprint` is
    the picture's record, see `fingerprints`. `outlines` are colours of painted lines, or None, by
    the object's number: of those that were searched.
    """

    index: int
    row: Row
    masks: tuple[SeenMask | BadMask, ...]
    picture: tuple[int, int] | BadImage | None = None
    fingerprint: bytes = fingerprints.NONE
    outlines: tuple[tuple[int, Colour | None], ...] = ()


def observe(rows: Rows, index: int, *, search: bool) -> Observed:
    """`search` says whether the picture is searched for paint. Raises DatasetInvalid for a row that can't be read."""
    return _observe(rows, index, rows[index], search=search)


def glance(rows: Rows, index: int) -> Observed:
    """A row with nothing but its largest objects by their boxes, searched for paint. Raises DatasetInvalid."""
    row = rows[index]
    boxes = row.bounding_boxes
    largest = sorted(range(len(boxes)), key=lambda number: -boxes[number][2] * boxes[number][3])[:_SEARCHED]
    parts = ("masks", "bounding_boxes", "labels", "object_ids")
    cut = {part: tuple(getattr(row, part)[number] for number in largest) for part in parts}
    return _observe(rows, index, msgspec.structs.replace(row, **cut), search=True)


def _observe(rows: Rows, index: int, row: Row, *, search: bool) -> Observed:
    decoded = _decode(row.masks)
    seen = tuple(
        counts if isinstance(counts, BadMask) else _seen(counts, mask, row)
        for counts, mask in zip(decoded, row.masks, strict=True)
    )
    slim = msgspec.structs.replace(row, masks=(), attributes=())
    if row.image is None:
        return Observed(index, slim, seen)
    try:
        picture = rows.read_image(index, row.image)
    except BadImage as error:
        return Observed(index, slim, seen, error)
    signs = _search(picture, row, decoded, seen) if search else ()
    return Observed(index, slim, seen, picture.size, fingerprints.of_picture(picture), signs)


def _decode(found: Sequence[Mask]) -> list[np.ndarray | BadMask]:
    """The counts of each mask, or what is wrong with it."""
    texts = [mask.counts for mask in found if isinstance(mask.counts, str)]
    read = iter(masks.read_all_compressed(texts) if texts else ())
    return [_fitting(next(read) if isinstance(mask.counts, str) else _listed(mask.counts), mask.size) for mask in found]


def _listed(numbers: Sequence[int]) -> np.ndarray | BadMask:
    try:
        return masks.read_list(numbers)
    except BadMask as error:
        return error


def _fitting(counts: np.ndarray | BadMask, grid: Grid) -> np.ndarray | BadMask:
    try:
        if not isinstance(counts, BadMask):
            masks.check_fits(counts, grid)
    except BadMask as error:
        return error
    return counts


def _seen(counts: np.ndarray, mask: Mask, row: Row) -> SeenMask:
    height, width = mask.size
    area = masks.area(counts)
    box = masks.scaled(masks.bounding_box(counts, height), mask.size, row.width, row.height)
    return SeenMask(area, area / (height * width), box)


def _search(
    picture: Image.Image, row: Row, decoded: Sequence[np.ndarray | BadMask], seen: Sequence[SeenMask | BadMask]
) -> tuple[tuple[int, Colour | None], ...]:
    """The outlines painted around the largest objects whose masks are sound, by their numbers in the row."""
    if picture.size != (row.width, row.height):
        return ()
    pixels = np.asarray(picture)
    sound = [(number, mask) for number, mask in enumerate(seen) if isinstance(mask, SeenMask) and mask.area]
    found = []
    for number, mask in sorted(sound, key=lambda each: -each[1].share)[:_SEARCHED]:
        height, width = row.masks[number].size
        grid = masks.paint(np.asarray(decoded[number])).reshape(width, height).T
        found.append((number, overlays.outline(pixels, grid, mask.box)))
    return tuple(found)
