"""From an annotated frame to a row: masks in COCO's order, boxes from the masks, boxes in pixels of the image.

Used by the convert recipe, one `Framer` an export.
"""

from collections import Counter
from collections.abc import Callable
from math import isqrt, sqrt
from typing import NamedTuple

import numpy as np

from gpu_runner.rows import Mask, Row
from gpu_runner.sam2 import masks, targets
from gpu_runner.sam2.annotations import AnnotatedFrame, AnnotatedObject
from gpu_runner.sam2.masks import BadMask, Box, Grid
from jobs.errors import DatasetInvalid
from jobs.specs import MaskOrder, TargetTask

_AGREES = 0.9  # IoU from which a stated box counts as the mask's own


class Wording(NamedTuple):
    """Which conversation a row carries."""

    task: TargetTask
    seed: int


class _Seen(NamedTuple):
    mask: Mask
    box: Box
    object: AnnotatedObject


class Framer:
    """Makes the rows of one export and counts what was odd about it."""

    def __init__(self, order: MaskOrder, wording: Wording) -> None:
        self._order = order
        self._wording = wording
        self.labels: Counter[str] = Counter()
        self.objects = 0
        self.empty_masks = 0
        self.boxes_corrected = 0
        self.scaled: tuple[Grid, tuple[int, int]] | None = None

    def row(
        self, row_id: str, video_id: str, frame: AnnotatedFrame, grid: Grid, image: str, size: tuple[int, int]
    ) -> Row:
        """The row of a frame; `size` is its image's (width, height). Objects whose mask is empty are left out.

        Raises:
            DatasetInvalid: a mask does not fit the grid.
        """
        seen = [found for one in frame.objects if (found := self._see(one, grid, size, row_id))]
        self.labels.update(each.object.label for each in seen)
        self.objects += len(seen)
        if seen and (grid[1], grid[0]) != size:
            self.scaled = (grid, size)
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
        return targets.with_conversation(row, *self._wording)

    def _see(self, found: AnnotatedObject, grid: Grid, size: tuple[int, int], row_id: str) -> _Seen | None:
        try:
            if found.size not in (None, grid):
                raise BadMask(f"has another grid than the video's first one, {grid[1]}x{grid[0]}")
            masks.check_fits(found.counts, grid)
        except BadMask as error:
            raise DatasetInvalid(f"Object {found.object_id!r} of {row_id}: the mask {error}.") from None
        if not masks.area(found.counts):
            self.empty_masks += 1
            return None
        counts = masks.transpose(found.counts, grid) if self._order is MaskOrder.ROW else found.counts
        text = masks.write_compressed(counts, grid)
        in_grid = masks.box_of(text, grid)
        box = masks.scaled(in_grid, grid, *size)
        if len(found.box) == 4 and max(masks.iou(found.box, in_grid), masks.iou(found.box, box)) < _AGREES:
            self.boxes_corrected += 1
        return _Seen(Mask(grid, text), box, found)


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
