"""The formats of exports, one file a format: `sam2`, `sav`, `sa1b`, `coco`. `open_export` is the door.

Which one an export has is seen from the keys of its JSON files by `detection`. A format has a function `read`, which
gives the videos of its files; `MASK_ORDER`, why its masks are known to count down the columns, or None where that has
to be found out; and `WHERE`, in which places pictures are looked for.

Adding a format: a file here, a line in `_READERS`, its word and its keys in `detection`, one test.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gpu_runner.sam2.export import VideoExport
from gpu_runner.sam2.readers import coco, detection, sa1b, sam2, sav
from gpu_runner.sam2.readers.detection import SourceFormat
from gpu_runner.sam2.sources import Source

_READERS: dict[SourceFormat, ModuleType] = {
    SourceFormat.SAM2: sam2,
    SourceFormat.SAV: sav,
    SourceFormat.SA1B: sa1b,
    SourceFormat.COCO: coco,
}

_SHOWN = 10


class Export(NamedTuple):
    """`mask_order` and `where` are those of the format; `notes` are sentences for the user."""

    format: SourceFormat
    videos: list[VideoExport]
    mask_order: str | None
    where: str
    notes: tuple[str, ...]


@contextmanager
def open_export(source: Source, scratch: Path) -> Iterator[Export]:
    """What a source holds. Files that are needed while it is read lie in the folder `scratch`.

    Raises:
        DatasetInvalid: no format is known, or what the files say of their videos cannot be used.
    """
    found = detection.detect(source)
    reader = _READERS[found.format]
    with ExitStack() as files:
        videos = reader.read(source, found.names, lambda: files.enter_context(tempfile.TemporaryFile(dir=scratch)))
        unread = sorted({*found.names, *found.others} - {video.annotations.name for video in videos})
        yield Export(found.format, videos, reader.MASK_ORDER, reader.WHERE, tuple(_unread(unread)))


def _unread(names: list[str]) -> Iterator[str]:
    if names:
        shown = f"{', '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''}"
        yield f"Other annotations that are there were not read: {shown}."
