"""`huggingface`: an Arrow folder for `datasets.load_from_disk`, with the images' bytes in the table or beside it.

Source: the layout of `datasets.Dataset.save_to_disk` 5.2: data files in the Arrow stream format, `dataset_info.json`
and `state.json`. Written with pyarrow, because the library's own writer keeps a cache and times elsewhere. The service,
which cannot read Arrow, finds the rows in `rows.jsonl`, and in it where in the data file each picture lies.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from datasets import DatasetInfo, Features, Image, List, Value

from gpu_runner.rows import LocatedRow, Row
from gpu_runner.sam2.manifest import HashedFile, sha256_of
from jobs.paths import ARROW_LINES, ARROW_STATE

_DATA = "data-00000-of-00001.arrow"
_INFO = "dataset_info.json"
_BATCH_ROWS = 64
_BATCH_BYTES = 32 << 20  # of images
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream

FEATURES = Features(
    {
        "id": Value("string"),
        "image": Image(),
        "conversations": List({"from": Value("string"), "value": Value("string")}),
        "masks": List({"size": List(Value("int32")), "counts": Value("string")}),
        "bounding_boxes": List(List(Value("float64"))),
        "labels": List(Value("string")),
        "object_ids": List(Value("string")),
        "attributes": List(Value("string")),
        "video_id": Value("string"),
        "frame_index": Value("int64"),
        "timestamp_sec": Value("float64"),
        "width": Value("int32"),
        "height": Value("int32"),
    }
)
"""The columns. `attributes` are JSON texts: every object may have other keys."""

REFERRING = Features({**FEATURES, "image": Value("string")})
"""The columns where pictures stay files: `image` is a path below the dataset folder."""


class HuggingFaceWriter:
    def __init__(self, folder: Path, *, embed_images: bool) -> None:
        self._folder = folder
        self._embeds = embed_images
        self._features = FEATURES if embed_images else REFERRING
        self._schema = self._features.arrow_schema
        self._data = HashedFile(folder / _DATA)
        self._data.write(self._schema.serialize())
        self._lines = HashedFile(folder / ARROW_LINES)
        self._encode = msgspec.json.Encoder().encode
        self._waiting: list[tuple[Row, bytes | None]] = []
        self._waiting_bytes = 0

    def add(self, row: Row) -> None:
        content = (self._folder / row.image).read_bytes() if self._embeds and row.image is not None else None
        self._waiting.append((row, content))
        self._waiting_bytes += len(content or b"")
        if len(self._waiting) >= _BATCH_ROWS or self._waiting_bytes >= _BATCH_BYTES:
            self._flush()

    def complete(self, images: dict[str, str]) -> dict[str, str]:
        self._flush()
        self._data.write(_END)
        self.close()
        if self._embeds:
            shutil.rmtree(self._folder / "images", ignore_errors=True)
        self._describe()
        return {
            **({} if self._embeds else images),
            _DATA: self._data.sha256,
            ARROW_LINES: self._lines.sha256,
            **{name: sha256_of(self._folder / name) for name in (_INFO, ARROW_STATE)},
        }

    def close(self) -> None:
        self._data.close()
        self._lines.close()

    def _flush(self) -> None:
        """Write the rows that wait as one message of the stream."""
        if not self._waiting:
            return
        cells = [self._cells(row, content) for row, content in self._waiting]
        message = pa.RecordBatch.from_pylist(cells, schema=self._schema).serialize()
        offsets = self._data.tell() + _picture_offsets(message, self._schema) if self._embeds else None
        self._data.write(memoryview(message))
        for number, (row, content) in enumerate(self._waiting):
            if content is not None and offsets is not None:
                row = _located(row, int(offsets[number]), len(content))
            self._lines.write(self._encode(row) + b"\n")
        self._waiting, self._waiting_bytes = [], 0

    def _cells(self, row: Row, content: bytes | None) -> dict[str, Any]:
        cells: dict[str, Any] = msgspec.to_builtins(row)
        if self._embeds and row.image is not None:
            cells["image"] = {"bytes": content, "path": row.image}
        cells["attributes"] = [self._encode(each).decode() for each in row.attributes]
        return cells

    def _describe(self) -> None:
        DatasetInfo(features=self._features).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": _DATA}],
            "_fingerprint": self._data.sha256[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self._folder / ARROW_STATE).write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))


def _picture_offsets(message: pa.Buffer, schema: pa.Schema) -> np.ndarray:
    """By row of a serialised batch: where in the message its picture begins."""
    content = pa.ipc.read_record_batch(message, schema).column("image").field("bytes")
    _, offsets, values = content.buffers()
    begins = np.frombuffer(offsets, dtype=np.int32, count=len(content)).astype(np.int64)
    return np.asarray(begins + (values.address - message.address if values else 0))


def _located(row: Row, offset: int, size: int) -> LocatedRow:
    fields: dict[str, Any] = {name: getattr(row, name) for name in Row.__struct_fields__}
    return LocatedRow(**fields, image_file=_DATA, image_offset=offset, image_bytes=size)
