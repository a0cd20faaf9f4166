"""`coco`: instances JSON with polygons or run lengths, one file for many pictures.

Its lists are in any order, so both are read into scratch files first; memory keeps 16 bytes for each annotation and
some 200 for each picture. Pictures of one folder whose names differ only in the number at their end are taken for one
video: where they are one, no neighbours come into different parts of a split, and where they are not, little is lost.

Source: COCO data format, https://cocodataset.org/#format-data (object detection).
"""

import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np

from gpu_runner.sam2 import json_stream, polygons
from gpu_runner.sam2.annotations import (
    AnnotatedFrame,
    AnnotatedObject,
    GridSide,
    Label,
    Rle,
    Sample,
    counts_of,
    label_of,
    typed,
)
from gpu_runner.sam2.export import Pictures, VideoExport, folder_of, frame_folders, stem_of, unique_ids
from gpu_runner.sam2.masks import BadMask, Grid
from gpu_runner.sam2.sources import Source
from jobs.errors import DatasetInvalid

MASK_ORDER = "COCO counts down the columns"
WHERE = "the folder of the JSON file, or images/, frames/ or data/ beside it, with the names the file states"

_LAST_NUMBER = re.compile(r"(.*?)(\d{1,9})$", re.DOTALL)
_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Image(msgspec.Struct, frozen=True):
    id: _Id
    file_name: Annotated[str, msgspec.Meta(max_length=1024)]
    width: GridSide
    height: GridSide


class _Category(msgspec.Struct, frozen=True):
    id: _Id
    name: Label


class _Annotation(msgspec.Struct, frozen=True):
    image_id: _Id
    category_id: _Id
    segmentation: Rle | list[list[float]]
    id: int | str = ""
    bbox: tuple[float, ...] | None = None


_READ = {*_Annotation.__struct_fields__, "area"}


def read(source: Source, names: Sequence[str], new_file: Callable[[], BinaryIO]) -> list[VideoExport]:
    """The videos of all files. Raises DatasetInvalid."""
    files = [CocoFile(source, name, new_file) for name in names]
    found = [(each, title) for file in files for each, title in _videos(file)]
    pictures = {name: Pictures(source, _folders(name)) for name in names}
    ids = unique_ids([title for _, title in found])
    return [VideoExport(video_id, each, pictures[each.name]) for video_id, (each, _) in zip(ids, found, strict=True)]


class CocoFile:
    """One file, read into scratch files: any image and its annotations can be had again."""

    def __init__(self, source: Source, name: str, new_file: Callable[[], BinaryIO]) -> None:
        self.name = name
        self._labels = self._read_labels(source)
        self._images = _Scratch(new_file())
        for number, raw in enumerate(json_stream.elements(source, name, "images")):
            self._images.add(typed(raw, _Image, name, f"/images/{number}").id, raw)
        self._images.complete()
        self._annotations = _Scratch(new_file())
        for number, raw in enumerate(json_stream.elements(source, name, "annotations")):
            self._annotations.add(typed(raw, _Annotation, name, f"/annotations/{number}").image_id, raw)
        self._annotations.complete()
        self._refuse_wrong_ids()

    def images(self) -> Iterator[tuple[int, str]]:
        """(id, file name) of each, in the file's order."""
        return ((key, raw["file_name"]) for key, raw in self._images.all())

    def frame(self, image_id: int, frame_index: int) -> AnnotatedFrame:
        """Raises DatasetInvalid."""
        ((_, raw),) = self._images.of(image_id)
        image = typed(raw, _Image, self.name, "/images")
        grid = (image.height, image.width)
        objects = tuple(
            self._object(raw, grid, f"/annotations/{number}") for number, raw in self._annotations.of(image_id)
        )
        return AnnotatedFrame(frame_index, 0.0, objects, image.file_name, grid)

    def _object(self, raw: dict[str, Any], grid: Grid, at: str) -> AnnotatedObject:
        stated = typed(raw, _Annotation, self.name, at)
        if stated.category_id not in self._labels:
            raise DatasetInvalid(f"{self.name}#{at}/category_id {stated.category_id} is in no entry of /categories.")
        rle = stated.segmentation if isinstance(stated.segmentation, Rle) else None
        return AnnotatedObject(
            object_id=str(stated.id),
            label=self._labels[stated.category_id],
            counts=self._painted(stated.segmentation, grid, f"{at}/segmentation"),
            size=rle.size if rle else grid,
            box=stated.bbox or (),
            attributes={key: value for key, value in raw.items() if key not in _READ},
        )

    def _painted(self, stated: Rle | list[list[float]], grid: Grid, at: str) -> np.ndarray:
        if isinstance(stated, Rle):
            return counts_of(stated, self.name, f"{at}/counts")
        try:
            return polygons.fill(stated, grid)
        except BadMask as error:
            raise DatasetInvalid(f"{self.name}#{at} {error}.") from None

    def _read_labels(self, source: Source) -> dict[int, str]:
        labels = {}
        for number, raw in enumerate(json_stream.elements(source, self.name, "categories")):
            at = f"/categories/{number}"
            category = typed(raw, _Category, self.name, at)
            labels[category.id] = label_of(category.name, self.name, f"{at}/name")
        return labels

    def _refuse_wrong_ids(self) -> None:
        images, annotations = self._images.keys(), self._annotations.keys()
        if len(again := np.flatnonzero(np.diff(np.sort(images)) == 0)):
            raise DatasetInvalid(f"{self.name}#/images: the id {np.sort(images)[again[0]]} is there more than once.")
        if len(strange := np.setdiff1d(annotations, images)):
            raise DatasetInvalid(f"{self.name}#/annotations: image_id {strange[0]} is in no entry of /images.")


class CocoAnnotations:
    """The frames of one video: which images of a file it is made of, as (frame index, image id), sorted."""

    def __init__(self, file: CocoFile, frames: Sequence[tuple[int, int]]) -> None:
        self.name = file.name
        self.size = (0, 0)  # stated with each frame
        self._file = file
        self._frames = frames

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[AnnotatedFrame]:
        return (self._file.frame(image_id, index) for n, (index, image_id) in enumerate(self._frames) if wanted(n))

    def sample(self, limit: int, objects: int) -> Sample:
        return Sample(len(self._frames), [])


class _Scratch:
    """JSON values on disk, found by a key that several may have, in the order they came.

    Read without moving the file's position, which forked processes share.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode
        self._keys = array("q")
        self._places = array("q", [0])  # where each begins, and the end

    def add(self, key: int, value: Any) -> None:
        self._keys.append(key)
        self._places.append(self._places[-1] + self._file.write(self._encode(value)))

    def complete(self) -> None:
        """From here on values can be read."""
        self._file.flush()

    def keys(self) -> np.ndarray:
        return np.array(self._keys, dtype=np.int64)

    def all(self) -> Iterator[tuple[int, Any]]:
        return ((key, self._value(number)) for number, key in enumerate(self._keys))

    def of(self, key: int) -> list[tuple[int, Any]]:
        """(number, value) of each with that key."""
        order, keys = self._sorted
        begin, end = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
        return [(number, self._value(number)) for number in order[begin:end].tolist()]

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        keys = self.keys()
        order = np.argsort(keys, kind="stable")
        return order, keys[order]

    def _value(self, number: int) -> Any:
        begin, end = self._places[number : number + 2]
        return msgspec.json.decode(os.pread(self._file.fileno(), end - begin, begin))


def _videos(file: CocoFile) -> Iterator[tuple[CocoAnnotations, str]]:
    """Its videos with their titles, in the order of their first pictures."""
    videos: dict[str, list[tuple[int, int]]] = {}
    for image_id, file_name in file.images():
        title, number = _title_and_number(file_name)
        videos.setdefault(title, []).append((number, image_id))
    for title, frames in videos.items():
        frames.sort()
        if len({number for number, _ in frames}) < len(frames):  # 7.jpg and 007.jpg
            frames = [(number, image_id) for number, (_, image_id) in enumerate(frames)]
        yield CocoAnnotations(file, frames), title or stem_of(file.name)


def _title_and_number(file_name: str) -> tuple[str, int]:
    """`clip/frame_0012.png` is number 12 of `clip/frame`."""
    path = file_name.removesuffix(f".{file_name.rpartition('.')[2]}")
    numbered = _LAST_NUMBER.fullmatch(path)
    if numbered is None:
        return path, 0
    return numbered[1].rstrip("_-./ "), int(numbered[2])


def _folders(name: str) -> list[str]:
    below = folder_of(name)
    above = folder_of(below.rstrip("/"))  # COCO's own archives keep annotations/ beside the folders of pictures
    return list(dict.fromkeys([*frame_folders(below), *frame_folders(above)]))
