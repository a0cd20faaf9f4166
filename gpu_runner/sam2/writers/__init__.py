"""The formats of datasets, one file a format: `llava`, `coco` (over it), `huggingface`. `open_writer` is the door.

`CountingWriter` stands before any of them.

Adding a format: a file here, a branch in `open_writer`, the word in `jobs.specs.DataFormat`, one test.
"""

from pathlib import Path
from typing import Protocol

from gpu_runner.rows import Row
from gpu_runner.sam2.manifest import Contents
from jobs.specs import ConvertSpec, DataFormat


class Writer(Protocol):
    """Takes rows one by one, their masks known to be whole; made for a folder in which their images lie already."""

    def add(self, row: Row) -> None: ...

    def complete(self, images: dict[str, str]) -> dict[str, str]:
        """Finish the dataset; SHA-256 in hex by path of every file the folder then holds.

        `images` are those that were put there.
        """

    def close(self) -> None:
        """Let go of the files, complete or not."""


def open_writer(spec: ConvertSpec, folder: Path) -> Writer:
    """The writer of the format that is asked for; a format's libraries are imported only then."""
    if spec.target_format is DataFormat.HUGGINGFACE:
        from gpu_runner.sam2.writers.huggingface import HuggingFaceWriter

        return HuggingFaceWriter(folder, embed_images=spec.embed_images)
    if spec.target_format is DataFormat.COCO:
        from gpu_runner.sam2.writers.coco import CocoWriter

        return CocoWriter(folder)
    from gpu_runner.sam2.writers.llava import LlavaWriter

    return LlavaWriter(folder)


class CountingWriter:
    """Passes rows on and counts them: in front of a format's writer, what a dataset holds in the end."""

    def __init__(self, writer: Writer, contents: Contents) -> None:
        self.contents = contents
        self._writer = writer

    def add(self, row: Row) -> None:
        self.contents.count(row)
        self._writer.add(row)

    def complete(self, images: dict[str, str]) -> dict[str, str]:
        return self._writer.complete(images)

    def close(self) -> None:
        self._writer.close()
