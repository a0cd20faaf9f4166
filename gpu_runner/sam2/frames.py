"""From an annotated frame to a row: masks in COCO's order, boxes from the masks, boxes in pixels of the image.

Used by `conversion`.
"""

from collections.abc import Callable
from math import isqrt, sqrt
from typing import NamedTuple

import numpy as np

from gpu_runner.rows import Mask, Row
from gpu_runner.sam2 import masks
from gpu_runner.sam2.annotations import AnnotatedFrame, AnnotatedObject
from gpu_runner.sam2.masks import BadMask, Box, Grid
from jobs.errors import DatasetInvalid
from jobs.specs import MaskOrder

_AGREES = 0.9  # IoU from which a stated box counts as the mask's own


class Oddities(NamedTuple):
    """What was odd about a frame. `scaled` is its masks' grid and its picture's (width, height), where they differ."""

    empty_masks: int
    boxes_corrected: int
    scaled: tuple[Grid, tuple[int, int]] | None


class _Seen(NamedTuple):
    mask: Mask
    box: Box
    is_corrected: bool
    object: AnnotatedObject


def row_of(
    row_id: str,
    video_id: str,
    frame: AnnotatedFrame,
    order: MaskOrder,
    grid: Grid,
    image: str,
    size: tuple[int, int],
) -> tuple[Row, Oddities]:
    """The row of a frame, without words; `size` is its image's (width, height). Empty masks are left out.

    Raises:
        DatasetInvalid: a mask does not fit the grid.
    """
    seen = [found for one in frame.objects if (found := _see(one, order, grid, size, row_id))]
    row = Row(
        id=row_id,
        image=image,
        conversations=(),
        masks=tuple(each.mask for each in seen),
        bounding_boxes=tuple(each.box for each in seen),
        labels=tuple(each.object.label for each in seen),
        object_ids=tuple(each.object.object_id for each in seen),
        attributes=tuple(each.object.attributes for each in seen),
        video_id=video_id,
        frame_index=frame.frame_index,
        timestamp_sec=frame.timestamp_sec,
        width=size[0],
        height=size[1],
    )
    return row, Oddities(
        empty_masks=len(frame.objects) - len(seen),
        boxes_corrected=sum(each.is_corrected for each in seen),
        scaled=(grid, size) if seen and (grid[1], grid[0]) != size else None,
    )


def _see(found: AnnotatedObject, order: MaskOrder, grid: Grid, size: tuple[int, int], row_id: str) -> _Seen | None:
    try:
        if found.size not in (None, grid):
            raise BadMask(f"has another grid than the video's first one, {grid[1]}x{grid[0]}")
        masks.check_fits(found.counts, grid)
    except BadMask as error:
        raise DatasetInvalid(f"Object {found.object_id!r} of {row_id}: the mask {error}.") from None
    if not masks.area(found.counts):
        return None
    counts = masks.transpose(found.counts, grid) if order is MaskOrder.ROW else found.counts
    text = masks.write_compressed(counts, grid)
    in_grid = masks.box_of(text, grid)
    box = masks.scaled(in_grid, grid, *size)
    is_apart = len(found.box) == 4 and max(masks.iou(found.box, in_grid), masks.iou(found.box, box)) < _AGREES
    return _Seen(Mask(grid, text), box, is_apart, found)


def has_objects(frame: AnnotatedFrame) -> bool:
    """Whether any object of the frame covers a pixel."""
    return any(masks.area(found.counts) for found in frame.objects)


def find_grid(
    counts: np.ndarray, stated: Grid | None, video: tuple[int, int], image_size: Callable[[], tuple[int, int]]
) -> Grid:
    """The (height, width) of an export's masks: as stated, else the shape that the number of pixels allows.

    Sizes are (width, height). Tried in turn: the image's size, the video's, a smaller or larger copy of either shape, a
    square.

    Raises:
        BadMask: none fits.
    """
    if stated is not None:
        return stated
    pixels = int(counts.sum())
    image = image_size()
    shapes = [(height, width) for width, height in (image, video) if width and height]
    for grid in [*shapes, *(_resized(shape, pixels) for shape in shapes), (isqrt(pixels), isqrt(pixels))]:
        if grid[0] * grid[1] == pixels > 0:
            return grid
    raise BadMask(
        f"has runs of {pixels} pixels, which is neither the size of the image ({image[0]}x{image[1]}) nor of "
        f"the video ({video[0]}x{video[1]}), nor a smaller copy of them, nor a square"
    )


def _resized(shape: Grid, pixels: int) -> Grid:
    factor = sqrt(pixels / (shape[0] * shape[1]))
    return round(shape[0] * factor), round(shape[1] * factor)
