"""Rows of an Arrow folder (the layout of `datasets.save_to_disk`), and of a split that refers to its rows.

Opened through `rows.open_rows`. Images are bytes inside the table, or files of the folder that it names.
"""

import io
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
from PIL import Image

from gpu_runner import images
from gpu_runner.lines import Lines, decode_line
from gpu_runner.rows import Mark, Row, Rows, SplitRef
from jobs.errors import DatasetInvalid
from jobs.paths import ARROW_STATE
from jobs.specs import DataFormat

_MARK = Mark.__struct_fields__


class ArrowRows(Rows):
    """Every row of the folder; the tables stay mapped, a batch is touched when one of its rows is."""

    def __init__(self, name: str, folder: Path) -> None:
        files = _data_files(folder, name)
        super().__init__(name, folder, DataFormat.HUGGINGFACE, files)
        self._sound: set[int] = set()
        self._batches = list(_batches(files, name))
        for batch in self._batches[:1]:  # a stream has one schema
            _check_columns(batch.schema, name)
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)
        self._embeds = not self._batches or pa.types.is_struct(self._batches[0].schema.field("image").type)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def ids(self) -> Iterator[str]:
        return (row_id.as_py() for number in range(len(self._batches)) for row_id in self._batch(number).column("id"))

    def marks(self) -> Iterator[Mark]:
        return itertools.chain.from_iterable(self._marks(self._batch(number)) for number in range(len(self._batches)))

    def split_lines(self) -> Iterator[bytes]:
        for index, mark in enumerate(self.marks()):
            yield msgspec.json.encode(
                SplitRef(
                    id=mark.id,
                    arrow_row=index,
                    video_id=mark.video_id,
                    frame_index=mark.frame_index,
                    labels=mark.labels,
                )
            )

    def _read(self, index: int) -> Row:
        batch, at = self._locate(index)
        cells = {name: batch.column(name)[at].as_py() for name in batch.schema.names if name != "image"}
        cells["image"] = self._name_of_picture(batch.column("image"), at, index)
        try:
            cells["attributes"] = [msgspec.json.decode(text) for text in cells.get("attributes") or ()]
            return msgspec.convert({name: value for name, value in cells.items() if value is not None}, Row)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DatasetInvalid(f"Row {index + 1} of {self.name} cannot be read: {error}.") from None

    def read_image(self, index: int, image: str) -> Image.Image:
        if not self._embeds:
            return super().read_image(index, image)
        return images.read_rgb(io.BytesIO(self._embedded(index)))

    def image_content(self, index: int, image: str) -> bytes:
        return self._embedded(index).to_pybytes() if self._embeds else super().image_content(index, image)

    def image_file(self, image: str) -> Path | None:
        return None if self._embeds else super().image_file(image)

    def _name_of_picture(self, pictures: Any, at: int, index: int) -> str | None:
        """Its path; of bytes that others wrote without one, a name of ours."""
        if not self._embeds:
            return cast("str | None", pictures[at].as_py())
        path: str | None = pictures.field("path")[at].as_py()
        has_content = path is None and pictures.field("bytes")[at].is_valid
        return f"picture {index + 1}" if has_content else path

    def _embedded(self, index: int) -> pa.Buffer:
        batch, at = self._locate(index)
        content = batch.column("image").field("bytes")[at]
        if not content.is_valid:
            raise images.BadImage("its bytes are not in the table")
        return content.as_buffer()

    def _batch(self, number: int) -> pa.RecordBatch:
        """A batch that is sound: reading one that is not ends the process, so each is checked when first touched."""
        batch = self._batches[number]
        if number not in self._sound:
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                raise _unreadable(self.name, error) from None
            self._sound.add(number)
        return batch

    def _locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds a row, and the row's place in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batch(number)
        return batch, index - int(self._ends[number]) + len(batch)

    def _marks(self, batch: pa.RecordBatch) -> Iterator[Mark]:
        """Only their columns are touched: reading whole rows costs ten times as much."""
        columns = {name: batch.column(name).to_pylist() for name in _MARK if name in batch.schema.names}
        for cells in zip(*columns.values(), strict=True):
            stated = {name: cell for name, cell in zip(columns, cells, strict=True) if cell is not None}
            try:
                yield msgspec.convert(stated, Mark)
            except msgspec.MsgspecError as error:
                raise DatasetInvalid(f"Row {stated.get('id')!r} of {self.name} cannot be read: {error}.") from None


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

    def split_lines(self) -> Iterator[bytes]:
        return (self._lines[index] for index in range(len(self)))

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
        return self._source.read_image(self._row_of(index), image)

    def image_content(self, index: int, image: str) -> bytes:
        return self._source.image_content(self._row_of(index), image)

    def image_file(self, image: str) -> Path | None:
        return self._source.image_file(image)

    def _row_of(self, index: int) -> int:
        return decode_line(self._ref, self._lines, index, self.name).arrow_row


def _data_files(folder: Path, name: str) -> list[Path]:
    try:
        state: Any = msgspec.json.decode((folder / ARROW_STATE).read_bytes())
        return [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as error:
        raise _unreadable(name, error) from None


def _batches(files: list[Path], name: str) -> Iterator[pa.RecordBatch]:
    try:
        for file in files:
            yield from pa.ipc.open_stream(pa.memory_map(str(file)))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(name, error) from None


def _check_columns(schema: pa.Schema, name: str) -> None:
    """Raises DatasetInvalid when what a row needs is not there."""
    once = {column for column, times in Counter(schema.names).items() if times == 1}
    is_whole = len(once) == len(schema.names) and {"id", "image", "conversations"} <= once
    if not is_whole or not _is_picture(schema.field("image").type):
        raise DatasetInvalid(
            f"{name} has the columns {', '.join(schema.names[:20])}; id, image (its path, or path and bytes) and "
            "conversations are needed, each once: convert the export again."
        )


def _is_picture(image: pa.DataType) -> bool:
    """The path of a file, or a path and bytes."""
    if not pa.types.is_struct(image):
        return bool(pa.types.is_string(image))
    parts = {part.name: part.type for part in image}
    content = parts.get("bytes")
    return (
        len(parts) == image.num_fields
        and "path" in parts
        and content is not None
        and bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))
    )


def _unreadable(name: str, error: Exception) -> DatasetInvalid:
    return DatasetInvalid(
        f"{name} is no Arrow dataset that can be read ({type(error).__name__}): convert the export again."
    )
