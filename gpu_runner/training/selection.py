"""Which rows of a dataset are looked at, and whether their pictures are shown or replaced by grey.

Used by evaluation and generation; training opens its rows here too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from gpu_runner.rows import Row, Rows
from jobs.paths import DataRoot

GREY = (127, 127, 127)


@dataclass(frozen=True)
class Selection:
    """Rows by index. With `grey` every picture is uniform grey of the same size: what guessing scores."""

    rows: Rows
    indices: tuple[int, ...]
    grey: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> tuple[Row, tuple[Image.Image, ...]]:
        """A row with its pictures. Raises DatasetInvalid when one is missing or broken."""
        row = self.rows[index]
        images = self.rows.open_images(index)
        return row, tuple(Image.new("RGB", image.size, GREY) for image in images) if self.grey else images

    def batches(self, size: int) -> Iterator[tuple[int, ...]]:
        for start in range(0, len(self.indices), size):
            yield self.indices[start : start + size]

    def first(self, count: int) -> "Selection":
        return Selection(self.rows, self.indices[:count], self.grey)


def everything(rows: Rows) -> Selection:
    return Selection(rows, tuple(range(len(rows))))


def spread(rows: Rows, limit: int, *, grey: bool = False) -> Selection:
    """At most `limit` rows, evenly spaced: neighbours of one video would tell less."""
    count = min(limit, len(rows))
    return Selection(rows, tuple(index * len(rows) // count for index in range(count)) if count else (), grey)


def image_name(root: DataRoot, rows: Rows, row: Row) -> str | None:
    """The picture's name below the data root; None where it has no file of its own."""
    return next(iter(image_names(root, rows, row)), None)


def image_names(root: DataRoot, rows: Rows, row: Row) -> tuple[str, ...]:
    """The names of its pictures below the data root; none where they have no files of their own."""
    files = [rows.image_file(name) for name in row.pictures]
    return tuple(root.name_of(file) for file in files if file is not None)
