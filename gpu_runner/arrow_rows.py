"""Rows of an Arrow folder (the layout of `datasets.save_to_disk`), and of a split that refers to its rows.

Opened through `rows.open_rows`. The images are bytes inside the table, so the folder can be moved.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from PIL import Image

from gpu_runner import images
from gpu_runner.rows import ARROW_STATE, Lines, Row, Rows, SplitRef, decode_line
from jobs.errors import DatasetInvalid
from jobs.specs import DataFormat


class ArrowRows(Rows):
    """Every row of the folder; the tables stay mapped, a batch is touched when one of its rows is."""

    def __init__(self, name: str, folder: Path) -> None:
        files = _data_files(folder, name)
        super().__init__(name, folder, DataFormat.HUGGINGFACE, files)
        self._batches = list(_batches(files, name))
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def ids(self) -> Iterator[str]:
        return (row_id.as_py() for batch in self._batches for row_id in batch.column("id"))

    def split_line(self, index: int) -> bytes:
        row = self._read(index)
        return msgspec.json.encode(
            SplitRef(id=row.id, arrow_row=index, video_id=row.video_id, frame_index=row.frame_index, labels=row.labels)
        )

    def _read(self, index: int) -> Row:
        batch, at = self._locate(index)
        cells = {name: batch.column(name)[at].as_py() for name in batch.schema.names if name != "image"}
        cells["image"] = batch.column("image").field("path")[at].as_py()
        try:
            cells["attributes"] = [msgspec.json.decode(text) for text in cells.get("attributes") or ()]
            return msgspec.convert({name: value for name, value in cells.items() if value is not None}, Row)
        except msgspec.MsgspecError as error:
            raise DatasetInvalid(f"Row {index + 1} of {self.name} cannot be read: {error}.") from None

    def read_image(self, index: int, image: str) -> Image.Image:
        batch, at = self._locate(index)
        content = batch.column("image").field("bytes")[at]
        if not content.is_valid:
            raise images.BadImage("its bytes are not in the table")
        return images.read_rgb(io.BytesIO(content.as_buffer()))

    def _locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds a row, and the row's place in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        return batch, index - int(self._ends[number]) + len(batch)


class ArrowSplitRows(Rows):
    """The rows of a split, read from the Arrow folder it was cut from."""

    def __init__(self, name: str, file: Path, source: ArrowRows) -> None:
        super().__init__(name, source.dataset, source.format, [file])
        self._source = source
        self._lines = Lines(file)
        self._ref = msgspec.json.Decoder(SplitRef)

    def __len__(self) -> int:
        return len(self._lines)

    def ids(self) -> Iterator[str]:
        return (decode_line(self._ref, self._lines, index, self.name).id for index in range(len(self)))

    def split_line(self, index: int) -> bytes:
        return self._lines[index]

    def _read(self, index: int) -> Row:
        ref = decode_line(self._ref, self._lines, index, self.name)
        row = self._source[ref.arrow_row] if 0 <= ref.arrow_row < len(self._source) else None
        if row is None or row.id != ref.id:
            raise DatasetInvalid(
                f"Row {ref.id!r} of {self.name} is not where it was in {self._source.name}: the dataset was "
                "converted again since. Split it again."
            )
        return row

    def read_image(self, index: int, image: str) -> Image.Image:
        return self._source.read_image(decode_line(self._ref, self._lines, index, self.name).arrow_row, image)


def _data_files(folder: Path, name: str) -> list[Path]:
    try:
        state: Any = msgspec.json.decode((folder / ARROW_STATE).read_bytes())
        return [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise _unreadable(name, error) from None


def _batches(files: list[Path], name: str) -> Iterator[pa.RecordBatch]:
    try:
        for file in files:
            yield from pa.ipc.open_stream(pa.memory_map(str(file)))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> DatasetInvalid:
    return DatasetInvalid(
        f"{name} is no Arrow dataset that can be read ({type(error).__name__}): convert the export again."
    )
