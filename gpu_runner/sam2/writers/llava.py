"""`llava`: one conversation a line in `llava_dataset.jsonl`, images beside it."""

from pathlib import Path

import msgspec

from gpu_runner.rows import Row
from gpu_runner.sam2.manifest import HashedFile
from jobs.paths import LLAVA_FILE


class LlavaWriter:
    def __init__(self, folder: Path) -> None:
        self._file = HashedFile(folder / LLAVA_FILE)
        self._encode = msgspec.json.Encoder().encode

    def add(self, row: Row) -> None:
        self._file.write(self._encode(row) + b"\n")

    def complete(self, images: dict[str, str]) -> dict[str, str]:
        self.close()
        return {**images, LLAVA_FILE: self._file.sha256}

    def close(self) -> None:
        self._file.close()
