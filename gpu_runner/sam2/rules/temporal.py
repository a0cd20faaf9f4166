"""temporal_consistency: objects that jump, flicker, or (strict) change places between frames of a video."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from gpu_runner.rows import Row, Rows
from gpu_runner.sam2 import masks, split_config
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding
from jobs.specs import SplitStrategy

_RULE = "temporal_consistency"
_JUMP = 0.5  # of the image's diagonal, from one frame to the next
_VIDEOS = 1000  # whose last frames are kept: rows of a video follow each other
_CROWD = 50  # objects moving at once beyond which pairs are not compared

Boxes = dict[str, Sequence[float]]


class _Frame(NamedTuple):
    frame_index: int
    boxes: Boxes


class _Suspect(NamedTuple):
    """What counts only where the frames that were compared are as close as any two of the video."""

    index: int
    video_id: str
    step: float  # how many frames lie from one to the next
    times: int = 1


class TemporalConsistency:
    """Compares each row with the two before it in its video. Looks away from splits that pick frames here and there.

    Frames without objects are often no rows. So how far a video's frames lie apart is known only at the end, and what
    was seen over a wider gap says nothing.
    """

    def __init__(self, rows: Rows, *, strict: bool) -> None:
        split = split_config.read_beside(rows)
        self._is_continuous = split is None or split.strategy is SplitStrategy.TEMPORAL
        self._strict = strict
        self._recent: dict[str, tuple[_Frame, ...]] = {}
        self._rows = rows
        self._steps: dict[str, int] = {}  # the smallest of each video
        self._jumps: list[_Suspect] = []
        self._flickers: list[_Suspect] = []
        self._swaps: list[_Suspect] = []

    def look(self, seen: Observed) -> None:
        if not self._is_continuous:
            return
        row = seen.row
        frame = _Frame(row.frame_index, _boxes_by_object(row))
        recent = self._recent.get(row.video_id, ())
        if row.video_id and recent and frame.frame_index > recent[-1].frame_index:
            self._compare(seen.index, row, frame, recent)
        self._recent[row.video_id] = (*recent[-1:], frame)
        if len(self._recent) > _VIDEOS:
            del self._recent[next(iter(self._recent))]

    def findings(self) -> list[Finding]:
        return [
            *self._tally(self._jumps).finding(
                _RULE,
                "warning",
                "Objects jump by half the image from one frame to the next (times: {count}).",
                "Look at these frames: often the tracker lost the object and took another.",
            ),
            *self._tally(self._flickers).finding(
                _RULE,
                "warning",
                "Objects are gone for a single frame (times: {count}).",
                "Look at the frame before these: often the mask was lost there.",
            ),
            *self._tally(self._swaps).finding(
                _RULE,
                "warning",
                "Two objects of one video seem to have changed identities (times: {count}).",
                "Look at these frames, and correct the tracks in the annotation tool.",
            ),
        ]

    def _compare(self, index: int, row: Row, frame: _Frame, recent: tuple[_Frame, ...]) -> None:
        before, boxes = recent[-1].boxes, frame.boxes
        step = frame.frame_index - recent[-1].frame_index
        smallest = self._steps[row.video_id] = min(step, self._steps.get(row.video_id, step))
        limit = _JUMP * math.hypot(row.width, row.height)
        kept = boxes.keys() & before.keys()
        jumps = sum(1 for name in kept if limit and _distance(boxes[name], before[name]) > limit)
        if jumps:
            self._jumps.append(_Suspect(index, row.video_id, step, jumps))
        if len(recent) == 2:
            gone = (boxes.keys() & recent[0].boxes.keys()) - before.keys()
            if gone:
                longest = max(step, recent[1].frame_index - recent[0].frame_index)
                self._flickers.append(_Suspect(index, row.video_id, longest, len(gone)))
        if kept and (step > smallest or len(recent) == 1):  # perhaps a frame between them is no row: nothing was in it
            self._flickers.append(_Suspect(index, row.video_id, step / 2, len(kept)))
        if self._strict and _swapped(boxes, before):
            self._swaps.append(_Suspect(index, row.video_id, step))

    def _tally(self, suspects: list[_Suspect]) -> Tally:
        real = [each for each in suspects if each.step == self._steps[each.video_id]]
        return Tally.of(sum(each.times for each in real), (self._rows[each.index].id for each in real))


def _boxes_by_object(row: Row) -> Boxes:
    named = zip(row.object_ids, row.bounding_boxes, strict=False)
    return {name: box for name, box in named if name and len(box) == 4}


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Between the boxes' centres, in pixels."""
    across = one[0] + one[2] / 2 - other[0] - other[2] / 2
    down = one[1] + one[3] / 2 - other[1] - other[3] / 2
    return math.hypot(across, down)


def _swapped(now: Boxes, before: Boxes) -> bool:
    """Whether two objects each lie where the other was rather than where they were themselves."""
    moved = [name for name in now.keys() & before.keys() if masks.iou(now[name], before[name]) < 0.1]
    if len(moved) > _CROWD:
        return False
    return any(
        masks.iou(now[one], before[other]) > 0.5 and masks.iou(now[other], before[one]) > 0.5
        for number, one in enumerate(moved)
        for other in moved[number + 1 :]
    )
