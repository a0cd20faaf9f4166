"""What a model is asked about a frame and what it should answer: one function a task.

Wording varies by a generator seeded with the job's seed and the row's id, so converting twice gives the same text.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from gpu_runner.rows import IMAGE_MARK, Turn
from gpu_runner.sam2.masks import Box
from jobs.specs import TargetTask

SCALE = 1000  # boxes of `detect` are normalised to 0..SCALE
_NAMELESS = "object"  # stands for an empty label


class Subject(NamedTuple):
    """A frame as the wording sees it; boxes are x, y, w, h in pixels of the image."""

    labels: Sequence[str]
    boxes: Sequence[Box]
    width: int
    height: int


def conversation(task: TargetTask, subject: Subject, seed: int, row_id: str) -> tuple[Turn, Turn]:
    """One question and its answer."""
    generator = random.Random(f"{seed}:{row_id}")
    question = generator.choice(_QUESTIONS[task])
    answer = _ANSWERS[task](subject, generator)
    return Turn("human", f"{IMAGE_MARK}\n{question}"), Turn("gpt", answer)


def _describe(subject: Subject, generator: random.Random) -> str:
    if not subject.labels:
        return "There are no annotated objects in this frame."
    names = [label or _NAMELESS for label in subject.labels]
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names).items())
    places = "; ".join(f"{name} at {_pixels(box)}" for name, box in zip(names, subject.boxes, strict=True))
    return generator.choice(_DESCRIPTIONS).format(total=_objects(len(names)), counts=counts, places=places)


def _detect(subject: Subject, _generator: random.Random) -> str:
    """Boxes as left, top, right, bottom."""
    found = [
        {"label": label or _NAMELESS, "box": _normalised(box, subject)}
        for label, box in zip(subject.labels, subject.boxes, strict=True)
    ]
    return msgspec.json.encode(found).decode()


def _classify(subject: Subject, _generator: random.Random) -> str:
    return ", ".join(sorted({label for label in subject.labels if label})) or "none"


def _normalised(box: Box, subject: Subject) -> list[int]:
    x, y, width, height = box
    return [
        round(x / subject.width * SCALE),
        round(y / subject.height * SCALE),
        round((x + width) / subject.width * SCALE),
        round((y + height) / subject.height * SCALE),
    ]


def _pixels(box: Box) -> str:
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

_ANSWERS: dict[TargetTask, Callable[[Subject, random.Random], str]] = {
    TargetTask.DESCRIBE: _describe,
    TargetTask.DETECT: _detect,
    TargetTask.CLASSIFY: _classify,
}
