"""Reading a JSON file of any size piece by piece: memory depends on its largest piece, not on the file.

Used by the readers. The parsing is ijson's (yajl). What it leaves open is kept shut here: it builds a path as long
as the nesting is deep for every bracket, and a single piece may be as large as the file, or many times larger once it
is built.
"""

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import ijson
import numpy as np

from gpu_runner.sam2.sources import Readable, Source
from jobs.errors import DatasetInvalid

MAX_DEPTH = 64
MAX_PIECE_BYTES = 64 << 20  # a frame with 100,000 objects and small masks has some 20 MiB
MAX_PIECE_BRACKETS = 4_000_000  # 3 bytes in the file are some 72 in memory; 100,000 objects have less than a million
MAX_VALUE_CHARACTERS = 4 << 20  # of what `first` gives, which describes a video or a picture
_BLOCK = 1 << 18
_EVENT_CHARACTERS = 16  # what a number or a bracket counts as
_PIECE_DEPTH = 2  # brackets down to here are those of the file itself and of its lists
_OTHER_BYTES = bytes(set(range(256)) - set(b"[]{}"))
_ESCAPED = re.compile(rb"\\.", re.DOTALL)


def elements(source: Source, name: str, key: str) -> Iterator[Any]:
    """The elements of a list in the file's outermost object, each built as a whole.

    Raises:
        BadJson: the file is no JSON, or nests or holds too much in one piece.
        DatasetInvalid: there is no such list.
    """
    is_empty = True
    for element in _values(source, name, f"{key}.item", f"/{key}/{{}}"):
        is_empty = False
        yield element
    if is_empty and first(source, name, key) != []:
        raise DatasetInvalid(f"{name}#/{key} is missing, or no list.")


def first(source: Source, name: str, key: str) -> Any:
    """The value of a key of the file's outermost object; None where there is none.

    Raises:
        BadJson: as for `elements`; a value may be much smaller than a piece.
    """
    depth, left = 0, MAX_VALUE_CHARACTERS
    builder: ijson.ObjectBuilder | None = None
    for event, value in events(source, name):
        depth += (event in _BEGINNINGS) - (event in _ENDS)
        if builder is not None:
            left -= _EVENT_CHARACTERS + (len(value) if isinstance(value, str) else 0)
            if left < 0:
                _refuse(name, f"/{key}", _TooMuch(f"the value is larger than {MAX_VALUE_CHARACTERS} characters"))
            builder.event(event, value)
            if depth == 1:
                return builder.value
        elif depth == 1 and event == "map_key" and value == key:
            builder = ijson.ObjectBuilder()
    return None


def events(source: Source, name: str) -> Iterator[tuple[str, Any]]:
    """The file as ijson's basic events. Raises BadJson."""
    with source.open(name) as file:
        try:
            yield from ijson.basic_parse(_Guarded(file), use_float=True, buf_size=_BLOCK)
        except (ijson.JSONError, _TooMuch) as error:
            _refuse(name, "", error)


_BEGINNINGS, _ENDS = ("start_map", "start_array"), ("end_map", "end_array")


def _values(source: Source, name: str, prefix: str, place: str) -> Iterator[Any]:
    """The values at ijson's `prefix`; `place` is the JSON pointer of the n-th."""
    number = 0
    with source.open(name) as file:
        try:
            for value in ijson.items(_Guarded(file), prefix, use_float=True, buf_size=_BLOCK):
                yield value
                number += 1
        except (ijson.JSONError, _TooMuch) as error:
            _refuse(name, place.format(number), error)


class BadJson(DatasetInvalid):
    """The file is no JSON."""


class _TooMuch(Exception):
    """The text says what, for a user."""


def _refuse(name: str, place: str, error: Exception) -> NoReturn:
    # yajl's first line says what, the others show where in the file with the file's own bytes
    text = re.split(r"\n|\\n", str(error))[0].removeprefix("b'").rstrip(". ")
    raise BadJson(f"{name}{place and '#'}{place} cannot be read as JSON: {text}.") from None


class _Guarded:
    """A file that refuses to give JSON which nests too deep or grows too large without an end in sight."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._depth = 0
        self._piece = 0
        self._brackets = 0
        self._is_in_text = False
        self._is_escaping = False

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        depths = self._depths(block)
        self._piece += len(block)
        self._brackets += len(depths)
        if len(depths):
            self._depth = int(depths[-1])
            if depths.max() > MAX_DEPTH:
                raise _TooMuch(f"it nests more than {MAX_DEPTH} levels deep")
            if depths.min() <= _PIECE_DEPTH:
                self._piece = self._brackets = 0
        if self._brackets > MAX_PIECE_BRACKETS:
            raise _TooMuch(f"one frame or value has more than {MAX_PIECE_BRACKETS} brackets")
        if self._piece > MAX_PIECE_BYTES:
            raise _TooMuch(f"one frame or value has more than {MAX_PIECE_BYTES >> 20} MiB")
        return block

    def _depths(self, block: bytes) -> np.ndarray:
        """How deep the nesting is behind each bracket of a block that is not within a text."""
        if self._is_escaping:
            block = block[1:]
            self._is_escaping = False
        if b"\\" in block:
            block = _ESCAPED.sub(b"", block)
            self._is_escaping = block.endswith(b"\\")
        parts = block.split(b'"')
        outside = b"".join(parts[1 if self._is_in_text else 0 :: 2])
        self._is_in_text ^= len(parts) % 2 == 0
        brackets = np.frombuffer(outside.translate(None, _OTHER_BYTES), dtype=np.uint8)
        return self._depth + np.cumsum(np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1))
