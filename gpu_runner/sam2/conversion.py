"""Writing the rows and images of an export into a dataset folder, and counting what was left out.

Used by the convert recipe: one `Conversion` a job, `convert` for each video, then `finish`.
"""

from collections import Counter
from pathlib import Path, PurePosixPath

from gpu_runner import images
from gpu_runner.sam2.annotations import AnnotatedFrame
from gpu_runner.sam2.export import VideoExport
from gpu_runner.sam2.frames import Framer, Wording, has_objects
from gpu_runner.sam2.masks import Grid
from gpu_runner.sam2.sources import Source
from gpu_runner.sam2.writers import Writer
from jobs.errors import DatasetInvalid
from jobs.specs import ConvertSpec, MaskOrder

_IDS_SHOWN = 10


class Conversion:
    """One export on its way through a writer into its folder; a context manager that closes the writer.

    Attributes:
        framer: its counts of objects and oddities.
        rows: rows written so far.
        skipped: frames left out because nothing is annotated in them.
    """

    def __init__(
        self, source: Source, folder: Path, spec: ConvertSpec, order: MaskOrder, where: str, writer: Writer
    ) -> None:
        self._source = source
        self._where = where
        self._folder = folder
        self._keep_empty = spec.keep_empty_frames
        self._writer = writer
        self._images: dict[str, str] = {}
        self._made: set[Path] = set()
        self._missing: list[str] = []
        self._times_seen: Counter[tuple[str, int]] = Counter()
        self.framer = Framer(order, Wording(spec.task, spec.seed))
        self.rows = 0
        self.skipped = 0

    def __enter__(self) -> "Conversion":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def convert(self, video: VideoExport, grid: Grid, frame: AnnotatedFrame) -> None:
        """Write the row of one frame. A missing picture is remembered, for `finish` to name them together.

        Raises:
            DatasetInvalid: the frame's mask or picture is broken.
        """
        if not self._keep_empty and not has_objects(frame):
            self.skipped += 1
            return
        row_id = self._row_id(video.video_id, frame.frame_index)
        entry = video.image_of(frame)
        if entry is None:
            self._missing.append(row_id)
            return
        image = f"images/{video.video_id}/frame_{frame.frame_index:06d}{PurePosixPath(entry).suffix.lower()}"
        size = self._place(entry, image, row_id)
        self._writer.add(self.framer.row(row_id, video.video_id, frame, frame.grid or grid, image, size))
        self.rows += 1

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
        if not self.rows:
            raise DatasetInvalid(
                f"None of the export's {self.skipped} frames carries an object: annotate some, or convert with "
                "keep_empty_frames."
            )
        return self._writer.complete(self._images)

    def _row_id(self, video_id: str, frame_index: int) -> str:
        self._times_seen[video_id, frame_index] += 1
        times = self._times_seen[video_id, frame_index]
        return f"{video_id}-{frame_index:06d}" + (f"-{times}" if times > 1 else "")

    def _place(self, entry: str, image: str, row_id: str) -> tuple[int, int]:
        """Put a picture into the folder; its width and height."""
        content = images.Content()
        try:
            digest = self._source.copy(entry, content)
            size = images.read_size(content)
        except images.BadImage as error:
            raise DatasetInvalid(f"The picture {entry!r} of {row_id} cannot be used: {error}.") from None
        if image not in self._images:
            path = self._folder / image
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
            path.write_bytes(content.getvalue())
            self._images[image] = digest
        return size
