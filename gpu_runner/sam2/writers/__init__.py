"""The formats of datasets, one file a format: `llava`, `coco` (over it), `huggingface`. `open_writer` is the door.

Adding a format: a file here, a branch in `open_writer`, the word in `jobs.specs.DataFormat`, one test.
"""

from pathlib import Path
from typing import Protocol

from gpu_runner.rows import Row
from jobs.specs import DataFormat


class Writer(Protocol):
    """Takes rows one by one; made for a folder in which their images lie already."""

    def add(self, row: Row) -> None: ...

    def close(self) -> None:
        """Complete the dataset."""

    def digests(self, images: dict[str, str]) -> dict[str, str]:
        """SHA-256 in hex by path of every file the folder holds now; `images` are those that were put there."""


def open_writer(data_format: DataFormat, folder: Path) -> Writer:
    """The writer of a format; a format's libraries are imported only when it is asked for."""
    if data_format is DataFormat.HUGGINGFACE:
        from gpu_runner.sam2.writers.huggingface import HuggingFaceWriter

        return HuggingFaceWriter(folder)
    if data_format is DataFormat.COCO:
        from gpu_runner.sam2.writers.coco import CocoWriter

        return CocoWriter(folder)
    from gpu_runner.sam2.writers.llava import LlavaWriter

    return LlavaWriter(folder)
