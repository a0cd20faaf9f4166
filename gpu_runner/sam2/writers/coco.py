"""`coco`: `instances.json` for everybody else's tools, beside LLaVA rows so that every route takes the folder.

Source: COCO data format, https://cocodataset.org/#format-data (object detection, masks as compressed run lengths).
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as coco

from gpu_runner.rows import Mask, Row
from gpu_runner.sam2 import masks
from gpu_runner.sam2.manifest import HashedFile
from gpu_runner.sam2.masks import Grid
from gpu_runner.sam2.writers.llava import LlavaWriter
from jobs.paths import COCO_FILE

_BLOCK = 1 << 20


class CocoWriter:
    """Annotations go to a scratch file while rows come, because instances.json wants them after the images."""

    def __init__(self, folder: Path) -> None:
        self._rows = LlavaWriter(folder)
        self._scratch_path = folder / "annotations.part"
        self._file = HashedFile(folder / COCO_FILE)
        self._annotations = self._scratch_path.open("w+b")
        self._categories: dict[str, int] = {}
        self._image_id = self._annotation_id = 0
        self._encode = msgspec.json.Encoder().encode
        self._file.write(b'{"images":[')

    def add(self, row: Row) -> None:
        self._rows.add(row)
        self._image_id += 1
        image = {"id": self._image_id, "file_name": row.image, "width": row.width, "height": row.height}
        self._file.write((b"," if self._image_id > 1 else b"") + self._encode(image))
        for annotation in self._annotations_of(row):
            self._annotation_id += 1
            annotation["id"] = self._annotation_id
            self._annotations.write((b"," if self._annotation_id > 1 else b"") + self._encode(annotation))

    def complete(self, images: dict[str, str]) -> dict[str, str]:
        categories = [{"id": number, "name": label} for label, number in self._categories.items()]
        self._annotations.seek(0)
        self._file.write(b'],"annotations":[')
        while block := self._annotations.read(_BLOCK):
            self._file.write(block)
        self._file.write(b'],"categories":' + self._encode(categories) + b"}\n")
        self.close()
        self._scratch_path.unlink()
        return {**self._rows.complete(images), COCO_FILE: self._file.sha256}

    def close(self) -> None:
        self._rows.close()
        self._file.close()
        self._annotations.close()

    def _annotations_of(self, row: Row) -> list[dict[str, Any]]:
        """One an object, still without its id."""
        grid = (row.height, row.width)
        fitted = [_on_grid(mask, grid) for mask in row.masks]
        return [
            {
                "id": 0,
                "image_id": self._image_id,
                "category_id": self._categories.setdefault(label, len(self._categories) + 1),
                "segmentation": {"size": grid, "counts": counts},
                "bbox": box,
                "area": area,
                "iscrowd": 0,
            }
            for (counts, area), box, label in zip(fitted, row.bounding_boxes, row.labels, strict=True)
        ]


def _on_grid(mask: Mask, grid: Grid) -> tuple[str, int]:
    """The mask on the image's own grid, as COCO's tools expect it, by nearest pixel; and its area."""
    if mask.size == grid:
        return str(mask.counts), int(coco.area({"size": grid, "counts": mask.counts}))
    resized = _resized(masks.read_compressed(str(mask.counts)), mask.size, grid)
    return masks.write_compressed(resized, grid), masks.area(resized)


def _resized(counts: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """Column-major counts on another grid. No mask is painted: an export of full HD would take half an hour."""
    ends = np.cumsum(counts)
    begins, ends = (ends - counts)[1::2], ends[1::2]
    begins, ends = _cut(begins[ends > begins], ends[ends > begins], old[0])
    column = begins // old[0]
    top, bottom = (-(-(rows * new[0]) // old[0]) for rows in (begins - column * old[0], ends - column * old[0]))
    left, right = (-(-(columns * new[1]) // old[1]) for columns in (column, column + 1))
    times = np.where(bottom > top, right - left, 0)
    source = np.repeat(np.arange(len(column)), times)
    within = np.arange(len(source)) - np.repeat(np.cumsum(times) - times, times)
    first = (left[source] + within) * new[0]
    begins, ends = first + top[source], first + bottom[source]
    order = np.argsort(begins)
    return _counts(begins[order], ends[order], new[0] * new[1])


def _cut(begins: np.ndarray, ends: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs cut where a column ends."""
    columns = (ends - 1) // height - begins // height + 1
    run = np.repeat(np.arange(len(begins)), columns)
    within = np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    top = (begins[run] // height + within) * height
    return np.maximum(begins[run], top), np.minimum(ends[run], top + height)


def _counts(begins: np.ndarray, ends: np.ndarray, pixels: int) -> np.ndarray:
    """Run lengths of foreground runs in order; runs that touch become one."""
    apart = begins[1:] != ends[:-1]
    begins = begins[np.concatenate([[True], apart])] if len(begins) else begins
    ends = ends[np.concatenate([apart, [True]])] if len(ends) else ends
    counts = np.diff(np.concatenate([[0], np.column_stack([begins, ends]).ravel(), [pixels]]))
    return counts if counts[-1] else counts[:-1]
