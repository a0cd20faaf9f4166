"""`sa-v`: one `<video>_manual.json` or `<video>_auto.json` a video, with a mask a frame and masklet, without labels.

Source: the README of the SA-V data set, facebookresearch/sam2 `sav_dataset/README.md`. Its videos have 24 frames a
second of which every fourth is annotated. Frames have to be taken out of the videos by whoever makes the archive:
they are numbered as in the video, or through as they are annotated.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, BinaryIO

import msgspec

from gpu_runner.sam2 import json_stream, masks
from gpu_runner.sam2.annotations import (
    AnnotatedFrame,
    AnnotatedObject,
    Rle,
    Sample,
    Side,
    Spread,
    counts_of,
    typed,
)
from gpu_runner.sam2.export import Pictures, VideoExport, folder_of, frame_folders, stem_of, unique_ids
from gpu_runner.sam2.sources import Source

MASK_ORDER = "SA-V counts down the columns, as COCO does"
WHERE = "a folder of the video's name, images/ or frames/ beside the JSON file, named like 00012.jpg"
LABEL = "object"

_FRAMES_A_SECOND = 24
_ANNOTATED_EACH = 4

_VideoId = Annotated[str, msgspec.Meta(max_length=200)]
_MASKLETS = tuple[int | str, ...]


def read(source: Source, names: Sequence[str], _new_file: Callable[[], BinaryIO]) -> list[VideoExport]:
    """A video for each file; of a video that was annotated by hand as well as automatically only the former."""
    by_hand = {name.removesuffix("_manual.json") for name in names if name.endswith("_manual.json")}
    used = [name for name in names if name.removesuffix("_auto.json") not in by_hand]
    stated = [typed(json_stream.first(source, name, "video_id") or "", _VideoId, name, "/video_id") for name in used]
    ids = [video_id or _video_of(name) for video_id, name in zip(stated, used, strict=True)]
    return [
        VideoExport(unique, SavAnnotations(source, name, pictures := _pictures(source, name, video_id)), pictures)
        for unique, name, video_id in zip(unique_ids(ids), used, ids, strict=True)
    ]


class SavAnnotations:
    def __init__(self, source: Source, name: str, pictures: Pictures) -> None:
        self.name = name
        self._source = source
        sides = [json_stream.first(source, name, key) or 0 for key in ("video_width", "video_height")]
        width, height = (typed(side, Side, name, "/video_width and video_height") for side in sides)
        self.size = (int(width), int(height))
        self._ids = typed(json_stream.first(source, name, "masklet_id") or (), _MASKLETS, name, "/masklet_id")
        self._pictures = pictures
        self._step = self._find_step()

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[AnnotatedFrame]:
        return (self._frame(number, raw) for number, raw in enumerate(self._stated()) if wanted(number))

    def sample(self, limit: int, objects: int) -> Sample:
        spread = Spread(limit)
        number = -1
        for number, raw in enumerate(self._stated()):
            if raw and isinstance(raw, list) and spread.wants_next():
                spread.chosen.append((number, raw[:objects]))
        return Sample(number + 1, [self._frame(*chosen) for chosen in spread.chosen])

    def _stated(self) -> Iterator[Any]:
        return json_stream.elements(self._source, self.name, "masklet")

    def _find_step(self) -> int:
        """From one annotated frame to the next in the numbers of the pictures."""
        last = sum(1 for _ in self._stated()) - 1
        return _ANNOTATED_EACH if last < 1 or self._pictures.numbered(last * _ANNOTATED_EACH) else 1

    def _frame(self, number: int, raw: Any) -> AnnotatedFrame:
        at = f"/masklet/{number}"
        stated = typed(raw, list[Rle | None], self.name, at)
        objects = (self._object(k, rle, f"{at}/{k}") for k, rle in enumerate(stated) if rle is not None)
        seen = tuple(found for found in objects if masks.area(found.counts))  # an empty mask: out of sight
        seconds = number * _ANNOTATED_EACH / _FRAMES_A_SECOND
        return AnnotatedFrame(number * self._step, seconds, seen)

    def _object(self, number: int, rle: Rle, at: str) -> AnnotatedObject:
        masklet = str(self._ids[number]) if number < len(self._ids) else str(number)
        return AnnotatedObject(masklet, LABEL, counts_of(rle, self.name, f"{at}/counts"), rle.size, (), {})


def _pictures(source: Source, name: str, video_id: str) -> Pictures:
    below = folder_of(name)
    own = [f"{below}{place}{video_id}/" for place in ("", "images/", "frames/", "JPEGImages_24fps/", "JPEGImages/")]
    return Pictures(source, [*own, *frame_folders(below)])


def _video_of(name: str) -> str:
    return stem_of(name).removesuffix("_manual").removesuffix("_auto")
