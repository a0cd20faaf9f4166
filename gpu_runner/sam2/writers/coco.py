"""`coco`: `instances.json` for everybody else's tools, beside LLaVA rows so that every route takes the folder.

Source: COCO data format, https://cocodataset.org/#format-data (object detection, masks as compressed run lengths).
"""

from pathlib import Path

import msgspec
import numpy as np

from gpu_runner.rows import COCO_FILE, Mask, Row
from gpu_runner.sam2 import masks
from gpu_runner.sam2.manifest import sha256_of
from gpu_runner.sam2.writers.llava import LlavaWriter


class CocoWriter:
    """Annotations go to a scratch file while rows come, because instances.json wants them after the images."""

    def __init__(self, folder: Path) -> None:
        self._rows = LlavaWriter(folder)
        self._path = folder / COCO_FILE
        self._scratch_path = folder / "annotations.part"
        self._images = self._path.open("wb")
        self._annotations = self._scratch_path.open("w+b")
        self._categories: dict[str, int] = {}
        self._image_id = self._annotation_id = 0
        self._images.write(b'{"images":[')

    def add(self, row: Row) -> None:
        self._rows.add(row)
        self._image_id += 1
        image = {"id": self._image_id, "file_name": row.image, "width": row.width, "height": row.height}
        self._images.write((b"," if self._image_id > 1 else b"") + msgspec.json.encode(image))
        for mask, box, label in zip(row.masks, row.bounding_boxes, row.labels, strict=True):
            self._annotation_id += 1
            fitted = _fitted(mask, row)
            annotation = {
                "id": self._annotation_id,
                "image_id": self._image_id,
                "category_id": self._categories.setdefault(label, len(self._categories) + 1),
                "segmentation": fitted,
                "bbox": box,
                "area": masks.area(masks.read_compressed(str(fitted.counts))),
                "iscrowd": 0,
            }
            self._annotations.write((b"," if self._annotation_id > 1 else b"") + msgspec.json.encode(annotation))

    def close(self) -> None:
        self._rows.close()
        categories = [{"id": number, "name": label} for label, number in self._categories.items()]
        self._annotations.seek(0)
        self._images.write(b'],"annotations":[')
        while block := self._annotations.read(1 << 20):
            self._images.write(block)
        self._images.write(b'],"categories":' + msgspec.json.encode(categories) + b"}\n")
        self._images.close()
        self._annotations.close()
        self._scratch_path.unlink()

    def digests(self, images: dict[str, str]) -> dict[str, str]:
        return {**self._rows.digests(images), COCO_FILE: sha256_of(self._path)}


def _fitted(mask: Mask, row: Row) -> Mask:
    """The mask on the image's own grid, as COCO's tools expect it; by nearest pixel."""
    height, width = mask.size
    if (width, height) == (row.width, row.height):
        return mask
    pixels = masks.paint(masks.read_compressed(str(mask.counts))).reshape(width, height).T
    down = (np.arange(row.height) * height) // row.height
    across = (np.arange(row.width) * width) // row.width
    counts = masks.count_runs(pixels[np.ix_(down, across)].ravel(order="F"))
    grid = (row.height, row.width)
    return Mask(grid, masks.write_compressed(counts, grid))
