"""box_integrity: every box is four finite numbers inside the image, and is the box of its mask."""

import math
from collections.abc import Sequence

from gpu_runner.rows import Row
from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import BadMask
from gpu_runner.sam2.observed import Observed, SeenMask
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "box_integrity"
_AGREES = 0.9  # IoU with the mask's own box
_SLACK = 0.5  # pixels a box may lie outside: stated boxes are rounded


class BoxIntegrity:
    def __init__(self) -> None:
        self._malformed, self._outside, self._apart = Tally(), Tally(), Tally()

    def look(self, seen: Observed) -> None:
        row = seen.row
        for number, box in enumerate(row.bounding_boxes):
            if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] <= 0 or box[3] <= 0:
                self._malformed.add(row.id)
            elif _is_outside(box, row):
                self._outside.add(row.id)
            elif number < len(seen.masks) and _is_apart(box, seen.masks[number]):
                self._apart.add(row.id)

    def findings(self) -> list[Finding]:
        return [
            *self._malformed.finding(
                _RULE,
                "error",
                "{count} boxes are not four finite numbers with a width and a height above 0.",
                "Boxes are [x, y, width, height] in pixels of the image: mend them or convert again.",
            ),
            *self._outside.finding(
                _RULE, "error", "{count} boxes reach beyond their image.", "Clip them to the image, or convert again."
            ),
            *self._apart.finding(
                _RULE,
                "warning",
                "{count} boxes are not those of their masks (IoU under 0.9).",
                "Convert again: boxes are then computed from the masks.",
            ),
        ]


def _is_outside(box: Sequence[float], row: Row) -> bool:
    return (
        box[0] < -_SLACK
        or box[1] < -_SLACK
        or (row.width > 0 and box[0] + box[2] > row.width + _SLACK)
        or (row.height > 0 and box[1] + box[3] > row.height + _SLACK)
    )


def _is_apart(box: Sequence[float], mask: SeenMask | BadMask) -> bool:
    """A mask that is broken or empty has no box; nor has one in a row that does not state its size."""
    return isinstance(mask, SeenMask) and mask.box[2] * mask.box[3] > 0 and masks.iou(box, mask.box) < _AGREES
