"""`llava`: one conversation a line in `llava_dataset.jsonl`, images beside it."""

from pathlib import Path

import msgspec

from gpu_runner.rows import LLAVA_FILE, Row
from gpu_runner.sam2.manifest import sha256_of


class LlavaWriter:
    def __init__(self, folder: Path) -> None:
        self._path = folder / LLAVA_FILE
        self._file = self._path.open("wb")
        self._encode = msgspec.json.Encoder().encode

    def add(self, row: Row) -> None:
        self._file.write(self._encode(row) + b"\n")

    def close(self) -> None:
        self._file.close()

    def digests(self, images: dict[str, str]) -> dict[str, str]:
        return {**images, LLAVA_FILE: sha256_of(self._path)}
