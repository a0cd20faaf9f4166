"""`sa-1b`: one JSON file a picture, with masks and without labels. Its pictures have nothing to do with each other.

Source: the README of facebookresearch/segment-anything, section "Dataset".
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from gpu_runner.sam2 import json_stream
from gpu_runner.sam2.annotations import (
    AnnotatedFrame,
    AnnotatedObject,
    GridSide,
    Rle,
    Sample,
    counts_of,
    typed,
)
from gpu_runner.sam2.export import Pictures, VideoExport, folder_of, frame_folders, stem_of, unique_ids
from gpu_runner.sam2.sources import Source
from jobs.errors import DatasetInvalid

MASK_ORDER = "SA-1B counts down the columns, as COCO does"
WHERE = "the folder of the JSON file, or images/, frames/ or data/ beside it, with the name the file states"
LABEL = "object"


class _Image(msgspec.Struct, frozen=True):
    width: GridSide
    height: GridSide
    file_name: str


class _Annotation(msgspec.Struct, frozen=True):
    segmentation: Rle
    id: int | str = ""
    bbox: tuple[float, ...] = ()


_READ = {*_Annotation.__struct_fields__, "area"}


def read(source: Source, names: Sequence[str], _new_file: Callable[[], BinaryIO]) -> list[VideoExport]:
    """A video of one frame for each file, so that dividing a dataset takes no two of them for neighbours."""
    ids = unique_ids([stem_of(name) for name in names])
    return [
        VideoExport(
            video_id,
            Sa1bAnnotations(source, name),
            Pictures(source, [folder_of(name), *frame_folders(folder_of(name))]),
        )
        for video_id, name in zip(ids, names, strict=True)
    ]


class Sa1bAnnotations:
    def __init__(self, source: Source, name: str) -> None:
        self.name = name
        self.size = (0, 0)  # stated with the frame
        self._source = source

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[AnnotatedFrame]:
        if wanted(0):
            yield self._frame()

    def sample(self, limit: int, objects: int) -> Sample:
        return Sample(1, [])

    def _frame(self) -> AnnotatedFrame:
        image = json_stream.first(self._source, self.name, "image")
        if image is None:
            raise DatasetInvalid(f"{self.name}#/image is missing.")
        stated = typed(image, _Image, self.name, "/image")
        raws = json_stream.elements(self._source, self.name, "annotations")
        objects = tuple(self._object(raw, f"/annotations/{number}") for number, raw in enumerate(raws))
        return AnnotatedFrame(0, 0.0, objects, stated.file_name, (stated.height, stated.width))

    def _object(self, raw: Any, at: str) -> AnnotatedObject:
        stated = typed(raw, _Annotation, self.name, at)
        return AnnotatedObject(
            object_id=str(stated.id),
            label=LABEL,
            counts=counts_of(stated.segmentation, self.name, f"{at}/segmentation/counts"),
            size=stated.segmentation.size,
            box=stated.bbox,
            attributes={key: value for key, value in raw.items() if key not in _READ},
        )
