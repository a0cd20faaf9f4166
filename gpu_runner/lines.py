"""The lines of a JSON-lines file, found without reading it line by line, decoded when asked for. Used by `rows`."""

import mmap
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from jobs.errors import DatasetInvalid

_SCAN_BYTES = 16 << 20

T = TypeVar("T")


class Lines:
    """The lines of a file that stays mapped; blank lines don't count."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._starts, self._ends = _line_bounds(self._bytes)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        return self._bytes[int(self._starts[index]) : int(self._ends[index])]


def decode_line(decoder: "msgspec.json.Decoder[T]", lines: Lines, index: int, name: str) -> T:
    """One line of a file, decoded. Raises DatasetInvalid naming the line."""
    try:
        return decoder.decode(lines[index])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetInvalid(f"Row {index + 1} of {name} cannot be read: {error}.") from None


def _line_bounds(content: "mmap.mmap | bytes") -> tuple[np.ndarray, np.ndarray]:
    """Start and end offset of every line that is not blank; int64."""
    ends: list[np.ndarray] = []
    view = np.frombuffer(content, dtype=np.uint8)
    for begin in range(0, len(view), _SCAN_BYTES):  # in pieces: the comparison makes a copy as large as its input
        ends.append(np.flatnonzero(view[begin : begin + _SCAN_BYTES] == ord("\n")) + begin)
    stops = np.concatenate([*ends, [len(view)]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1]).astype(np.int64)
    starts, stops = starts[stops > starts], stops[stops > starts]
    filled = (stops - starts > 1) | (view[starts] != ord("\r"))
    return starts[filled], stops[filled]
