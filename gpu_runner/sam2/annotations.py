"""One `annotations.json` of an export: mapped from disk, its frames decoded one at a time.

Used by `export`. Errors point at the place in the file as a JSON pointer.
"""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np

from gpu_runner.rows import IMAGE_MARK
from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import BadMask, Grid
from jobs.errors import DatasetInvalid

_Side = Annotated[float, msgspec.Meta(ge=0, le=1 << 16)]  # some exporters write 1920.0
_GridSide = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
_Label = Annotated[str, msgspec.Meta(max_length=200)]


class Video(msgspec.Struct, frozen=True):
    """The video the frames were taken from; sides in pixels, 0 where the export does not say."""

    filename: str = ""
    width: _Side = 0.0
    height: _Side = 0.0


@dataclass(frozen=True)
class AnnotatedObject:
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


@dataclass(frozen=True)
class AnnotatedFrame:
    frame_index: int
    timestamp_sec: float
    objects: tuple[AnnotatedObject, ...]


class Annotations:
    """The frames of one file. `frame(k)` decodes; nothing decoded is kept."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        """Map a file; `name` is what errors call it. Raises DatasetInvalid when it has not the right shape."""
        self.name = name
        try:
            content: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            content = b""
        try:
            self._whole = msgspec.json.decode(content, type=_Whole)
        except _UNREADABLE as error:
            raise DatasetInvalid(f"{_explained(content, name)} {_pointed(name, '', error)}") from None

    def __len__(self) -> int:
        return len(self._whole.annotations)

    @property
    def video(self) -> Video:
        return self._whole.video

    def frame(self, number: int) -> AnnotatedFrame:
        """Raises DatasetInvalid with the pointer to what is wrong."""
        at = f"/annotations/{number}"
        frame = self._decode(self._whole.annotations[number], _Frame, at)
        objects = tuple(self._object(raw, f"{at}/objects/{k}") for k, raw in enumerate(frame.objects))
        return AnnotatedFrame(frame.frame_index, frame.timestamp_sec, objects)

    def frames(self) -> Iterator[AnnotatedFrame]:
        return (self.frame(number) for number in range(len(self)))

    def _object(self, raw: msgspec.Raw, at: str) -> AnnotatedObject:
        stated = self._decode(raw, _Object, at)
        everything = self._decode(raw, dict[str, msgspec.Raw], at)
        if IMAGE_MARK in (stated.label or ""):
            raise DatasetInvalid(f"{self.name}#{at}/label holds the reserved word {IMAGE_MARK}: rename the label.")
        try:
            counts = _counts(stated.mask_rle)
        except BadMask as error:
            raise DatasetInvalid(f"{self.name}#{at}/mask_rle {error}.") from None
        return AnnotatedObject(
            object_id=str(stated.object_id),
            label=(stated.label or "").strip(),
            counts=counts,
            size=stated.mask_rle.size if isinstance(stated.mask_rle, _Rle) else None,
            box=stated.bbox or (),
            attributes={key: msgspec.json.decode(raw) for key, raw in everything.items() if key not in _READ},
        )

    def _decode(self, raw: msgspec.Raw, wanted: Any, at: str) -> Any:
        try:
            return msgspec.json.decode(raw, type=wanted)
        except _UNREADABLE as error:
            raise DatasetInvalid(_pointed(self.name, at, error)) from None


class _Whole(msgspec.Struct, frozen=True):
    annotations: list[msgspec.Raw]
    video: Video = Video()


class _Frame(msgspec.Struct, frozen=True):
    frame_index: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    timestamp_sec: float = 0.0
    objects: list[msgspec.Raw] = []


class _Rle(msgspec.Struct, frozen=True):
    counts: str | list[int]
    size: tuple[_GridSide, _GridSide]


class _Object(msgspec.Struct, frozen=True):
    mask_rle: str | _Rle
    object_id: int | str = ""
    label: _Label | None = None
    bbox: tuple[float, ...] | None = None


_READ = {*_Object.__struct_fields__, "area"}  # the area follows from the mask
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _counts(stated: str | _Rle) -> np.ndarray:
    """Raises BadMask."""
    if isinstance(stated, str):
        return masks.read_plain(stated)
    if isinstance(stated.counts, list):
        counts = masks.read_list(stated.counts)
    elif " " in stated.counts.strip():
        counts = masks.read_plain(stated.counts)
    else:
        counts = masks.read_compressed(stated.counts)
    return counts


def _pointed(name: str, at: str, error: Exception) -> str:
    """msgspec's complaint, with its place as a JSON pointer."""
    text, _, place = str(error).partition(" - at `$")
    pointer = re.sub(r"\[(\d*|\.\.\.)\]", r"/\1", place.rstrip("`").replace(".", "/"))
    return f"{name}#{at}{pointer}: {text}."


def _explained(content: "mmap.mmap | bytes", name: str) -> str:
    """What the file seems to be instead."""
    try:
        found = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except _UNREADABLE:
        return f"{name} is no JSON object."
    if {"images", "categories"} <= found.keys():
        return f"{name} holds COCO instances, which this version does not read: export from SAM2."
    if {"masklet", "masklet_id"} & found.keys():
        return f"{name} holds SA-V masklets, which this version does not read: export from SAM2."
    return f"{name} is no SAM2 export: it holds {', '.join(sorted(found)[:10]) or 'nothing'}."
