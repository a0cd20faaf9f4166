"""Writing the rows and images of an export into a dataset folder, and counting what was left out.

Used by the convert recipe: a `Converter` makes rows and places images, in several processes; one `Conversion` a job
takes what they made, in order, and then finishes the dataset.
"""

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from gpu_runner import images
from gpu_runner.rows import Row
from gpu_runner.sam2 import targets
from gpu_runner.sam2.annotations import AnnotatedFrame
from gpu_runner.sam2.export import VideoExport
from gpu_runner.sam2.frames import Oddities, has_objects, row_of
from gpu_runner.sam2.manifest import Left
from gpu_runner.sam2.masks import Grid
from gpu_runner.sam2.sources import Source
from gpu_runner.sam2.writers import CountingWriter
from jobs.errors import DatasetInvalid
from jobs.specs import ConvertSpec, MaskOrder

_IDS_SHOWN = 10


class Converted(NamedTuple):
    """A frame whose picture lies in the folder."""

    row: Row
    oddities: Oddities
    image_bytes: int
    image_sha256: str


class Pictureless(NamedTuple):
    """A frame whose picture is not there."""

    video_id: str
    frame_index: int


class Converter:
    """What is done with each frame by itself, whatever the others are."""

    def __init__(self, source: Source, folder: Path, spec: ConvertSpec, order: MaskOrder) -> None:
        self._source = source
        self._folder = folder
        self._spec = spec
        self._order = order
        self._made: set[Path] = set()

    def convert(self, video: VideoExport, grid: Grid, frame: AnnotatedFrame) -> Converted | Pictureless | Left:
        """The row of a frame, named as if no other had its number, or that it is to be left out.

        Raises:
            DatasetInvalid: the frame's mask or picture is broken.
        """
        if not self._spec.keep_empty_frames and not has_objects(frame):
            return Left(video.video_id, frame.frame_index)
        entry = video.image_of(frame)
        if entry is None:
            return Pictureless(video.video_id, frame.frame_index)
        row_id = _row_id(video.video_id, frame.frame_index)
        image = f"images/{video.video_id}/frame_{frame.frame_index:06d}{PurePosixPath(entry).suffix.lower()}"
        content = images.Content()
        try:
            sha256 = self._source.copy(entry, content)
            size = images.read_size(content)
        except images.BadImage as error:
            raise DatasetInvalid(f"The picture {entry!r} of {row_id} cannot be used: {error}.") from None
        row, oddities = row_of(row_id, video.video_id, frame, self._order, frame.grid or grid, image, size)
        self._place(self._folder / image, content.getvalue())
        row = targets.with_conversation(row, self._spec.task, self._spec.seed)
        return Converted(row, oddities, len(content.getvalue()), sha256)

    def _place(self, path: Path, content: bytes) -> None:
        if path.parent not in self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:  # a frame stated twice, whose picture another process may be writing just now
            whole = path.with_suffix(f".{os.getpid()}")
            whole.write_bytes(content)
            whole.replace(path)


class Conversion:
    """One export on its way through a writer into its folder; a context manager that closes the writer.

    Attributes:
        taken: counts of the rows that were given to the writer so far.
        skipped: frames left out because nothing is annotated in them.
        empty_masks, boxes_corrected, scaled: what was odd, see `Oddities`; of the scaled the last.
    """

    def __init__(
        self, source: Source, spec: ConvertSpec, where: str, writer: CountingWriter, left_out: set[Left]
    ) -> None:
        """Frames that are left out are added to `left_out`."""
        self._source = source
        self._spec = spec
        self._where = where
        self._writer = writer
        self._left_out = left_out
        self._images: dict[str, str] = {}
        self._missing: list[str] = []
        self._video_id = ""
        self._times_seen: Counter[int] = Counter()
        self._image_bytes = 0
        self.taken = writer.contents
        self.skipped = self.empty_masks = self.boxes_corrected = 0
        self.scaled: tuple[Grid, tuple[int, int]] | None = None

    def __enter__(self) -> "Conversion":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, made: Converted | Pictureless | Left) -> None:
        """Take the next frame; those of a video come together, so that it is known what was there already.

        A missing picture is remembered, for `finish` to name them together.
        """
        if isinstance(made, Left):
            self.skipped += 1
            if not self._times_of(made.video_id)[
                made.frame_index
            ]:  # else the frame was stated twice, once with objects
                self._left_out.add(made)
        elif isinstance(made, Pictureless):
            self._missing.append(_row_id(*made, self._count(*made)))
        else:
            self._add(made)

    def finish(self) -> dict[str, str]:
        """Complete the dataset; SHA-256 by path of every file in it.

        Raises:
            DatasetInvalid: pictures are missing, or no frame is left.
        """
        if self._missing:
            shown = ", ".join(self._missing[:_IDS_SHOWN])
            raise DatasetInvalid(
                f"The export has no picture for {len(self._missing)} annotated frames ({shown}"
                f"{' …' if len(self._missing) > _IDS_SHOWN else ''}). Pictures are looked for in {self._where}. Export "
                "again with its frames."
            )
        if not self.taken.rows:
            raise DatasetInvalid(
                f"None of the export's {self.skipped} frames carries an object: annotate some, or convert with "
                "keep_empty_frames."
            )
        return self._writer.complete(self._images)

    def _add(self, made: Converted) -> None:
        row = made.row
        self._image_bytes += made.image_bytes
        self._source.allow(self._image_bytes)  # all processes together; each has looked at its own share
        self._images.setdefault(str(row.image), made.image_sha256)
        times = self._count(row.video_id, row.frame_index)
        if times > 1:
            renamed = msgspec.structs.replace(row, id=_row_id(row.video_id, row.frame_index, times))
            row = targets.with_conversation(renamed, self._spec.task, self._spec.seed)
        self._writer.add(row)
        self.empty_masks += made.oddities.empty_masks
        self.boxes_corrected += made.oddities.boxes_corrected
        self.scaled = made.oddities.scaled or self.scaled

    def _count(self, video_id: str, frame_index: int) -> int:
        """How often the frame was there, this time included."""
        times = self._times_of(video_id)
        times[frame_index] += 1
        return times[frame_index]

    def _times_of(self, video_id: str) -> Counter[int]:
        """How often each frame of the video was there so far."""
        if video_id != self._video_id:
            self._video_id, self._times_seen = video_id, Counter()
        return self._times_seen


def _row_id(video_id: str, frame_index: int, times: int = 1) -> str:
    return f"{video_id}-{frame_index:06d}" + (f"-{times}" if times > 1 else "")
