"""What an export says about one video, whichever format it has: its frames and the objects in them.

The readers make them; `probes`, `frames` and `conversion` use them. Errors name the file and the place in it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

from gpu_runner.rows import IMAGE_MARK
from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import BadMask, Grid
from jobs.errors import DatasetInvalid

T = TypeVar("T")

GridSide = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Side = Annotated[float, msgspec.Meta(ge=0, le=1 << 16)]  # some exporters write 1920.0
Label = Annotated[str, msgspec.Meta(max_length=200)]
FrameIndex = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class AnnotatedObject(NamedTuple):
    """One object in one frame.

    `counts` are in the export's own order; `size` is its grid where the export says it; `box` is as stated, it may
    be wrong. `attributes` is whatever else the export says about the object.
    """

    object_id: str
    label: str
    counts: np.ndarray
    size: Grid | None
    box: tuple[float, ...]
    attributes: dict[str, Any]


class AnnotatedFrame(NamedTuple):
    """One frame. `image` is its picture's name, and `grid` that of its masks, where the export says so of each frame.

    Else the picture is found by the frame's number, and all masks of the video lie on one grid.
    """

    frame_index: int
    timestamp_sec: float
    objects: tuple[AnnotatedObject, ...]
    image: str | None = None
    grid: Grid | None = None


class Sample(NamedTuple):
    """How many frames there are, and some of those with objects, evenly spread, the first one among them."""

    frames: int
    chosen: list[AnnotatedFrame]


class Annotations(Protocol):
    """The frames of one video, read anew each time they are asked for; none is kept.

    Attributes:
        name: the file they come from.
        size: (width, height) of the video in pixels, zeros where the export does not say.
    """

    name: str
    size: tuple[int, int]

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[AnnotatedFrame]:
        """Those whose number, counted from 0, is wanted. Raises DatasetInvalid with the place of what is wrong."""

    def sample(self, limit: int, objects: int) -> Sample:
        """About `limit` frames with at most so many objects each. Raises DatasetInvalid."""


class Spread:
    """Chooses `limit` to twice as many things, evenly spread, from a stream of unknown length."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._step = 1
        self._offered = 0
        self.chosen: list[Any] = []

    def wants_next(self) -> bool:
        """Ask once for each thing; put it into `chosen` when the answer is yes."""
        self._offered += 1
        if (self._offered - 1) % self._step:
            return False
        if len(self.chosen) == 2 * self._limit:
            del self.chosen[1::2]
            self._step *= 2
            return (self._offered - 1) % self._step == 0
        return True


class Rle(msgspec.Struct, frozen=True):
    """A mask as run lengths with its grid, (height, width)."""

    counts: str | list[int]
    size: tuple[GridSide, GridSide]


def typed(raw: Any, wanted: type[T], name: str, at: str) -> T:
    """A piece of decoded JSON as a struct. Raises DatasetInvalid, `at` being the piece's JSON pointer."""
    try:
        return msgspec.convert(raw, wanted)
    except (msgspec.ValidationError, RecursionError) as error:
        text, _, place = str(error).partition(" - at `$")
        pointer = re.sub(r"\[(\d*|\.\.\.)\]", r"/\1", place.rstrip("`").replace(".", "/"))
        raise DatasetInvalid(f"{name}#{at}{pointer}: {text}.") from None


def counts_of(stated: str | Rle, name: str, at: str) -> np.ndarray:
    """The run lengths of a mask in any of the three encodings. Raises DatasetInvalid."""
    try:
        if isinstance(stated, str):
            return masks.read_plain(stated)
        if isinstance(stated.counts, list):
            return masks.read_list(stated.counts)
        if " " in stated.counts.strip():
            return masks.read_plain(stated.counts)
        return masks.read_compressed(stated.counts)
    except BadMask as error:
        raise DatasetInvalid(f"{name}#{at} {error}.") from None


def label_of(stated: str | None, name: str, at: str) -> str:
    """A label without spaces around it. Raises DatasetInvalid when a conversation could not hold it."""
    label = (stated or "").strip()
    if IMAGE_MARK in label:
        raise DatasetInvalid(f"{name}#{at} holds the reserved word {IMAGE_MARK}: rename the label.")
    return label
