"""`sam2`: the export of the SAM2 annotation tool, one `annotations.json` a video with its frames beside it.

Source: genuine exports; `docs/data.md` says what is odd about them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from gpu_runner.sam2 import json_stream
from gpu_runner.sam2.annotations import (
    AnnotatedFrame,
    AnnotatedObject,
    FrameIndex,
    Label,
    Rle,
    Sample,
    Side,
    Spread,
    counts_of,
    label_of,
    typed,
)
from gpu_runner.sam2.export import Pictures, VideoExport, folder_of, frame_folders, stem_of, unique_ids
from gpu_runner.sam2.sources import Source

MASK_ORDER = None  # exports differ, it has to be found out
WHERE = "images/, frames/ or data/ beside annotations.json, named like frame_000012.png"


class _Video(msgspec.Struct, frozen=True):
    filename: str = ""
    width: Side = 0.0
    height: Side = 0.0


class _Object(msgspec.Struct, frozen=True):
    mask_rle: str | Rle
    object_id: int | str = ""
    label: Label | None = None
    bbox: tuple[float, ...] | None = None


class _Frame(msgspec.Struct, frozen=True):
    frame_index: FrameIndex
    timestamp_sec: float = 0.0
    objects: list[_Object] = []


_READ = {*_Object.__struct_fields__, "area"}  # the area follows from the mask


def read(source: Source, names: Sequence[str], _new_file: Callable[[], BinaryIO]) -> list[VideoExport]:
    """A video for each file. Raises DatasetInvalid."""
    stated = [_video(source, name) for name in names]
    ids = [stem_of(video.filename) or _place(source, name) for video, name in zip(stated, names, strict=True)]
    if len({video_id.casefold() for video_id in ids}) < len(ids):  # the folders tell what the videos' files don't
        ids = [_place(source, name) for name in names]
    return [
        VideoExport(video_id, Sam2Annotations(source, name, video), Pictures(source, frame_folders(folder_of(name))))
        for video_id, name, video in zip(unique_ids(ids), names, stated, strict=True)
    ]


class Sam2Annotations:
    def __init__(self, source: Source, name: str, video: _Video) -> None:
        self.name = name
        self.size = (int(video.width), int(video.height))
        self._source = source

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[AnnotatedFrame]:
        return (self._frame(number, raw) for number, raw in enumerate(self._stated()) if wanted(number))

    def sample(self, limit: int, objects: int) -> Sample:
        spread = Spread(limit)
        number = -1
        for number, raw in enumerate(self._stated()):
            if _first_objects(raw, 1) and spread.wants_next():
                spread.chosen.append((number, {**raw, "objects": _first_objects(raw, objects)}))
        return Sample(number + 1, [self._frame(*chosen) for chosen in spread.chosen])

    def _stated(self) -> Iterator[Any]:
        return json_stream.elements(self._source, self.name, "annotations")

    def _frame(self, number: int, raw: Any) -> AnnotatedFrame:
        at = f"/annotations/{number}"
        stated = typed(raw, _Frame, self.name, at)
        objects = tuple(
            self._object(one, raw["objects"][k], f"{at}/objects/{k}") for k, one in enumerate(stated.objects)
        )
        return AnnotatedFrame(stated.frame_index, stated.timestamp_sec, objects)

    def _object(self, stated: _Object, raw: dict[str, Any], at: str) -> AnnotatedObject:
        return AnnotatedObject(
            object_id=str(stated.object_id),
            label=label_of(stated.label, self.name, f"{at}/label"),
            counts=counts_of(stated.mask_rle, self.name, f"{at}/mask_rle"),
            size=stated.mask_rle.size if isinstance(stated.mask_rle, Rle) else None,
            box=stated.bbox or (),
            attributes={key: value for key, value in raw.items() if key not in _READ},
        )


def _place(source: Source, name: str) -> str:
    """What a file is called by where it lies."""
    return folder_of(name).rstrip("/").replace("/", "_") or source.title


def _video(source: Source, name: str) -> _Video:
    stated = json_stream.first(source, name, "video")
    return _Video() if stated is None else typed(stated, _Video, name, "/video")


def _first_objects(raw: Any, count: int) -> list[Any]:
    """Of a frame of which nothing is known yet; none where it is broken, which converting will say."""
    objects = raw.get("objects") if isinstance(raw, dict) else None
    return objects[:count] if isinstance(objects, list) else []
