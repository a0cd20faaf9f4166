"""The lines of a JSON-lines file, found without reading it line by line, decoded when asked for. Used by `rows`."""

import os
import weakref
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from jobs.errors import DatasetInvalid

_SCAN_BYTES = 4 << 20
_NEWLINE, _RETURN = b"\n\r"

T = TypeVar("T")


class Lines:
    """The lines of a file that stays open; blank lines don't count.

    A line is read where it lies, so forked readers share the file. It is not mapped: what was read once would count as
    memory until another program wants it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._starts, self._ends = _line_bounds(self._file.fileno())

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        start = int(self._starts[index])
        return os.pread(self._file.fileno(), int(self._ends[index]) - start, start)


def decode_line(decoder: "msgspec.json.Decoder[T]", lines: Lines, index: int, name: str) -> T:
    """One line of a file, decoded. Raises DatasetInvalid naming the line."""
    try:
        return decoder.decode(lines[index])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetInvalid(f"Row {index + 1} of {name} cannot be read: {error}.") from None


def _line_bounds(fd: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end offset of every line that is not blank; int64."""
    stops, ends_in_return = [], []
    size, last = 0, 0
    while block := os.pread(fd, _SCAN_BYTES, size):
        view = np.frombuffer(block, dtype=np.uint8)
        found = np.flatnonzero(view == _NEWLINE)
        before = view[found - 1]
        if len(found) and found[0] == 0:
            before[0] = last
        stops.append(found + size)
        ends_in_return.append(before == _RETURN)
        size, last = size + len(block), block[-1]
    end = np.concatenate([*stops, [size]]).astype(np.int64)
    start = np.concatenate([[0], end[:-1] + 1]).astype(np.int64)
    is_return = np.concatenate([*ends_in_return, [last == _RETURN]])
    filled = end - start > is_return  # a lone carriage return is a blank line too
    return start[filled], end[filled]
