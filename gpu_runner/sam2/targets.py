"""What a model is asked about a frame and what it should answer: one function a task.

Wording varies by a generator seeded with the job's seed and the row's id, so converting twice gives the same text.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpu_runner.rows import IMAGE_MARK, Row, Turn
from gpu_runner.sam2 import shapes
from gpu_runner.sam2.shapes import SCALE
from jobs.specs import TargetTask

_NAMELESS = "object"  # stands for an empty label


def with_conversation(row: Row, task: TargetTask, seed: int) -> Row:
    """The row with one question and its answer, whatever was said about it before.

    Raises:
        BadMask: the answer needs a mask that cannot be decoded.
    """
    generator = random.Random(f"{seed}:{row.id}")
    question = generator.choice(_QUESTIONS[task])
    answer = _ANSWERS[task](row, generator)
    turns = (Turn("human", f"{IMAGE_MARK}\n{question}"), Turn("gpt", answer))
    return msgspec.structs.replace(row, conversations=turns)


def _describe(row: Row, generator: random.Random) -> str:
    if not row.labels:
        return "There are no annotated objects in this frame."
    names = [label or _NAMELESS for label in row.labels]
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names).items())
    places = "; ".join(f"{name} at {_pixels(box)}" for name, box in zip(names, row.bounding_boxes, strict=True))
    return generator.choice(_DESCRIPTIONS).format(total=_objects(len(names)), counts=counts, places=places)


def _detect(row: Row, _generator: random.Random) -> str:
    """Boxes as left, top, right, bottom."""
    return _listed(row, "box", [_normalised(box, row) for box in row.bounding_boxes])


def _point(row: Row, _generator: random.Random) -> str:
    return _listed(row, "point", [shapes.inner_point(mask) for mask in row.masks])


def _polygon(row: Row, _generator: random.Random) -> str:
    return _listed(row, "polygons", [shapes.outlines(mask) for mask in row.masks])


def _classify(row: Row, _generator: random.Random) -> str:
    return ", ".join(sorted({label for label in row.labels if label})) or "none"


def _listed(row: Row, key: str, places: Sequence[Any]) -> str:
    found = [{"label": label or _NAMELESS, key: place} for label, place in zip(row.labels, places, strict=True)]
    return msgspec.json.encode(found).decode()


def _normalised(box: Sequence[float], row: Row) -> list[int]:
    x, y, width, height = box
    return [
        round(x / row.width * SCALE),
        round(y / row.height * SCALE),
        round((x + width) / row.width * SCALE),
        round((y + height) / row.height * SCALE),
    ]


def _pixels(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{round(value)}" for value in box) + "]"


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"


_QUESTIONS = {
    TargetTask.DESCRIBE: (
        "Describe the objects in this frame.",
        "What objects are in this frame, and where?",
        "Which objects can you see, and where are they?",
        "List the objects in this image with their positions.",
    ),
    TargetTask.DETECT: (
        "Detect every object. Answer with a JSON list of label and box, boxes as [x1, y1, x2, y2] from 0 to 1000.",
        "Give a JSON list with the label and the box of each object; coordinates run from 0 to 1000.",
        "Where are the objects? Answer as JSON: label and box [x1, y1, x2, y2], normalised to 0..1000.",
    ),
    TargetTask.POINT: (
        "Point at every object. Answer with a JSON list of label and point, points as [x, y] from 0 to 1000.",
        "Give a JSON list with the label of each object and a point inside it; coordinates run from 0 to 1000.",
        "Where are the objects? Answer as JSON: label and one point [x, y] inside, normalised to 0..1000.",
    ),
    TargetTask.POLYGON: (
        "Outline every object. Answer with a JSON list of label and polygons, each [x1, y1, x2, y2, …] from 0 to 1000.",
        "Give a JSON list with the label and the outlines of each object: polygons of x, y in turn, from 0 to 1000.",
        "Trace the objects. Answer as JSON: label and polygons, each x1, y1, x2, y2, … normalised to 0..1000.",
    ),
    TargetTask.CLASSIFY: (
        "What is in this picture?",
        "Which classes do you see?",
        "Name what you see.",
        "What does this frame show?",
    ),
}

_DESCRIPTIONS = (
    "There are {total} in this frame ({counts}): {places}.",
    "This frame shows {total}: {counts}. Positions [x, y, width, height]: {places}.",
    "I see {total} ({counts}). Their boxes are: {places}.",
)

_ANSWERS: dict[TargetTask, Callable[[Row, random.Random], str]] = {
    TargetTask.DESCRIBE: _describe,
    TargetTask.DETECT: _detect,
    TargetTask.POINT: _point,
    TargetTask.POLYGON: _polygon,
    TargetTask.CLASSIFY: _classify,
}
