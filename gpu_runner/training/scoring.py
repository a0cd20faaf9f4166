"""How good answers are, by what their rows ask for: labels, boxes, JSON, or the very text. No tensors.

Used by generation and evaluation. What the rows don't ask for has no score.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from gpu_runner.rows import Row
from gpu_runner.training import conversation
from jobs.results import Answer

_BOX_KEYS = ("box", "bbox_2d")  # ours and Qwen's: left, top, right, bottom
_KEY = re.compile(r'"\w+"\s*:')  # also in an answer that was cut off


class Labels:
    """The labels that rows know, and how to find them in a text."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.known = frozenset[str]().union(*map(labels_of, rows))
        longest_first = sorted(self.known, key=len, reverse=True)  # "sports car" before "car"
        words = "|".join(map(re.escape, longest_first))
        self._mention = re.compile(rf"(?<!\w)({words})s?(?!\w)") if words else None

    def mentioned(self, text: str) -> frozenset[str]:
        """Known labels that stand in the text as words, a plural s allowed. JSON's keys are no words."""
        return frozenset(self._mention.findall(_folded(_KEY.sub(" ", text)))) if self._mention else frozenset()

    def is_correct(self, row: Row, predicted: str) -> bool:
        """Whether the labels mentioned are the row's; without any known labels, whether the text is the same."""
        if self.known:
            return self.mentioned(predicted) == labels_of(row)
        return is_exact(conversation.answer_of(row), predicted)


def labels_of(row: Row) -> frozenset[str]:
    """The row's labels without their case; objects without a name don't count."""
    return frozenset(map(_folded, row.labels)) - {""}


def is_exact(expected: str, predicted: str) -> bool:
    return " ".join(expected.split()) == " ".join(predicted.split())


def constant_accuracy(rows: Iterable[Row]) -> float | None:
    """What the best fixed answer would score: the share of the most frequent set of labels."""
    counts = Counter(labels_of(row) for row in rows)
    if set(counts) <= {frozenset()}:
        return None
    return counts.most_common(1)[0][1] / counts.total()


class Scores(NamedTuple):
    """Of a set of answers; each is 0 to 1, None where no row asks for such a thing.

    `label_accuracy` is the share of answers with the right labels, `exact_match` that of the expected texts, spaces
    aside; `json_validity` the share of valid JSON where JSON is expected. `box_iou` is the mean overlap of boxes,
    `box_iou_50` the share of boxes that overlap by half or more, both counting boxes that are missing or too many.
    """

    label_accuracy: float | None
    exact_match: float | None
    json_validity: float | None
    box_iou: float | None
    box_iou_50: float | None


def scores(answers: Sequence[Answer]) -> Scores:
    """What the answers are worth."""
    overlaps = [overlap for answer in answers for overlap in box_overlaps(answer.expected, answer.predicted)]
    return Scores(
        label_accuracy=_share(bool(answer.correct) for answer in answers),
        exact_match=_share(is_exact(answer.expected, answer.predicted) for answer in answers),
        json_validity=_share(
            _structure_in(answer.predicted) is not None
            for answer in answers
            if _structure_in(answer.expected) is not None
        ),
        box_iou=math.fsum(overlaps) / len(overlaps) if overlaps else None,
        box_iou_50=_share(overlap >= 0.5 for overlap in overlaps),
    )


def box_overlaps(expected: str, predicted: str) -> list[float]:
    """Intersection over union of each expected box with the predicted one of its label that fits it best, each used
    once; 0 for each box that has no partner, on either side. Empty where no boxes are expected nor predicted."""
    wanted, given = _boxes_in(expected), _boxes_in(predicted)
    if wanted is None:
        return []
    given = given or []
    pairs = sorted(
        (
            (_overlap(one.corners, other.corners), at, to)
            for at, one in enumerate(wanted)
            for to, other in enumerate(given)
            if one.label == other.label
        ),
        reverse=True,
    )
    found: list[float] = []
    taken, used = set[int](), set[int]()
    for overlap, at, to in pairs:
        if at not in taken and to not in used:
            taken.add(at)
            used.add(to)
            found.append(overlap)
    return found + [0.0] * (max(len(wanted), len(given)) - len(found))


class _Box(NamedTuple):
    label: str
    corners: tuple[float, float, float, float]


def _structure_in(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text is as JSON; a bare word or number is no structure."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None
    return found if isinstance(found, list | dict) else None


def _boxes_in(text: str) -> list[_Box] | None:
    """Labelled boxes of a text that is a JSON list of objects; None where it is none. The list may be empty."""
    found = _structure_in(text)
    if isinstance(found, dict):
        found = [found]
    if found is None or not all(isinstance(each, dict) for each in found):
        return None
    boxes = [box for each in found if (box := _box(each)) is not None]
    return boxes if boxes or not found else None


def _box(thing: dict[str, Any]) -> _Box | None:
    corners = next((thing[key] for key in _BOX_KEYS if key in thing), None)
    if not isinstance(corners, list) or len(corners) != 4 or not all(type(each) in (int, float) for each in corners):
        return None
    return _Box(_folded(str(thing.get("label", ""))), tuple(corners))


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of boxes left, top, right, bottom."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (_area(one) + _area(other) - both)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _share(outcomes: Iterable[bool]) -> float | None:
    counted = Counter(outcomes)
    return counted[True] / counted.total() if counted else None


def _folded(label: str) -> str:
    return " ".join(label.casefold().split())
