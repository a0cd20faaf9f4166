"""`huggingface`: an Arrow folder for `datasets.load_from_disk`, with the images' bytes in the table.

Source: the layout of `datasets.Dataset.save_to_disk` 5.2: data files in the Arrow stream format, `dataset_info.json`
and `state.json`. Written with pyarrow, because the library's own writer keeps a cache and times elsewhere.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from datasets import DatasetInfo, Features, Image, List, Value

from gpu_runner.rows import ARROW_STATE, Row
from gpu_runner.sam2.manifest import sha256_of

_DATA = "data-00000-of-00001.arrow"
_INFO = "dataset_info.json"
_BATCH_ROWS = 64
_BATCH_BYTES = 32 << 20  # of images

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


class HuggingFaceWriter:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sink = pa.OSFile(str(folder / _DATA), "wb")
        self._stream = pa.ipc.new_stream(self._sink, FEATURES.arrow_schema)
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, row: Row) -> None:
        cells = msgspec.to_builtins(row)
        if row.image is not None:
            content = (self._folder / row.image).read_bytes()
            cells["image"] = {"bytes": content, "path": row.image}
            self._waiting_bytes += len(content)
        cells["attributes"] = [msgspec.json.encode(each).decode() for each in row.attributes]
        self._waiting.append(cells)
        if len(self._waiting) >= _BATCH_ROWS or self._waiting_bytes >= _BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._stream.close()
        self._sink.close()
        shutil.rmtree(self._folder / "images", ignore_errors=True)
        self._describe()

    def digests(self, _images: dict[str, str]) -> dict[str, str]:
        return {name: sha256_of(self._folder / name) for name in (_DATA, _INFO, ARROW_STATE)}

    def _flush(self) -> None:
        if self._waiting:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=FEATURES.arrow_schema))
        self._waiting, self._waiting_bytes = [], 0

    def _describe(self) -> None:
        DatasetInfo(features=FEATURES).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": _DATA}],
            "_fingerprint": sha256_of(self._folder / _DATA)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self._folder / ARROW_STATE).write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
