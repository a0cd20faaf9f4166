"""Rows of a dataset for people to look at: a page of them, from files of any size, whatever state they are in.

Called by `routes/datasets`, in a thread. A file of rows is JSON lines; where its lines begin is found out once, in
blocks, and remembered as one mark a block. What the runner reads strictly is read here as far as it goes: a row that
cannot be read has an `error` in its place. Of an Arrow dataset the rows stand in `rows.jsonl` beside the table, which
says where in the table's file each picture lies.
"""

import itertools
import os
import re
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlencode

import msgspec

from jobs.errors import FileMissing, InvalidInput, PathNotAllowed
from jobs.paths import ARROW_LINES, LLAVA_FILE, SPLIT_CONFIG, DataRoot
from jobs.values import OnlyId
from service.answers import Answer

ENOUGH_BYTES = 8 * 2**20  # a page ends before its limit once its rows are so large
LONGEST_LINE = 8 * 2**20

_CONFIG_MAX_BYTES = 16 * 2**20
_BLOCK_BYTES = 2**18
_REMEMBERED = 64  # files
_BLANK = (b"", b"\r")


class Picture(Answer, frozen=True, kw_only=True):
    """`width` and `height` are what the row says, 0 where it says nothing."""

    url: str
    width: int
    height: int


class Turn(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    from_: str
    value: str


class Mask(msgspec.Struct, frozen=True):
    """COCO run lengths, column by column; `size` is (height, width)."""

    size: tuple[int, int]
    counts: str | tuple[int, ...]


class RowAnswer(Answer, frozen=True, kw_only=True):
    """`masks`, `boxes` (x, y, w, h in pixels), `labels` and `object_ids` are parallel. `error` says what is wrong."""

    index: int
    id: str | None = None
    image: Picture | None = None
    conversations: tuple[Turn, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    masks: tuple[Mask, ...] = ()
    labels: tuple[str, ...] = ()
    object_ids: tuple[str, ...] = ()
    video_id: str = ""
    frame_index: int = 0
    timestamp_sec: float = 0.0
    error: str | None = None


class RowPage(Answer, frozen=True, kw_only=True):
    """`next` is the `after` of the next page, null on the last one. A page of large rows is shorter than its limit."""

    rows: tuple[RowAnswer, ...]
    total: int
    next: int | None


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line, as the runner writes it; `image_…` say where the picture lies in a file of the dataset."""

    id: str
    image: str | None = None
    conversations: tuple[Turn, ...] = ()
    masks: tuple[Mask, ...] = ()
    bounding_boxes: tuple[tuple[float, ...], ...] = ()
    labels: tuple[str, ...] = ()
    object_ids: tuple[str, ...] = ()
    video_id: str = ""
    frame_index: int = 0
    timestamp_sec: float = 0.0
    width: int = 0
    height: int = 0
    image_file: str | None = None
    image_offset: int = 0
    image_bytes: int = 0


class _Ref(msgspec.Struct, frozen=True):
    """A line of a split that was cut from an Arrow dataset."""

    id: str
    arrow_row: int


class _SplitConfig(msgspec.Struct, frozen=True):
    dataset: str
    format: str


class _Source(NamedTuple):
    """The file whose lines are shown, the dataset its pictures belong to, and what its lines refer to, if they do."""

    lines: str
    dataset: str
    table: str | None = None


class _Index(NamedTuple):
    """Marks: at the byte `starts[k]` a line begins, and `before[k]` rows stand before it."""

    rows: int
    starts: "array[int]"
    before: "array[int]"


class _Indexing:
    """The index of a file, once somebody has made it; whoever asks meanwhile waits for its turn."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.index: _Index | None = None


_decode_row = msgspec.json.Decoder(_Row).decode
_decode_ref = msgspec.json.Decoder(_Ref).decode
_decode_id = msgspec.json.Decoder(OnlyId).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class RowFiles:
    """The files of rows below a data root. `prefix` is that of the addresses of pictures, such as `/api`."""

    def __init__(self, root: DataRoot) -> None:
        self._root = root
        self._indexes: OrderedDict[tuple[int, ...], _Indexing] = OrderedDict()
        self._turn = threading.Lock()  # of the dictionary: looking through a file takes its own

    def page(self, data_path: str, after: int, limit: int, prefix: str) -> RowPage:
        """Up to `limit` rows behind the first `after`.

        Raises:
            PathNotAllowed, FileMissing: as `DataRoot.open`.
            InvalidInput: these are no rows that can be shown.
        """
        source = self._source(data_path)
        with self._root.open(source.lines) as file:
            index = self._index_of(file)
            lines = _lines(file, index, after)
            found = tuple(self._read(source, lines, after, limit, prefix))
        end = after + len(found)
        return RowPage(rows=found, total=index.rows, next=end if end < index.rows else None)

    def find(self, data_path: str, row_id: str) -> int | None:
        """How many rows stand before the one of that id; None without one. Raises as `page`."""
        with self._root.open(self._source(data_path).lines) as file:
            return _find(file, self._index_of(file), row_id)

    # -- which file

    def _source(self, data_path: str) -> _Source:
        name = self._root.confine_existing(data_path)
        if self._root.path_of(name).is_dir():
            return _Source(self._rows_of(name), name)
        if not name.endswith(".jsonl"):
            raise InvalidInput("is no dataset: give the folder of a dataset, or a .jsonl file", path="data_path")
        folder = name.rpartition("/")[0]
        config = self._split_config(folder)
        if config is None:
            return _Source(name, folder)
        dataset = self._root.confine(config.dataset)
        return _Source(name, dataset, f"{dataset}/{ARROW_LINES}" if config.format == "huggingface" else None)

    def _rows_of(self, folder: str) -> str:
        for name in (LLAVA_FILE, ARROW_LINES):
            if os.path.lexists(self._root.path_of(f"{folder}/{name}")):
                return f"{folder}/{name}"
        if os.path.lexists(self._root.path_of(f"{folder}/{SPLIT_CONFIG}")):
            raise InvalidInput(f"holds a split: give one of its files, such as {folder}/train.jsonl", path="data_path")
        raise InvalidInput("holds no rows that can be shown: convert the export again", path="data_path")

    def _split_config(self, folder: str) -> _SplitConfig | None:
        try:
            with self._root.open(f"{folder}/{SPLIT_CONFIG}") as file:
                return msgspec.json.decode(file.read(_CONFIG_MAX_BYTES), type=_SplitConfig)
        except FileMissing:
            return None
        except _UNREADABLE:
            raise InvalidInput(
                f"cannot be shown: {SPLIT_CONFIG} beside it is damaged, split again", path="data_path"
            ) from None

    def _index_of(self, file: BinaryIO) -> _Index:
        """Made once for a file as it is; the files looked at last are remembered."""
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        with self._turn:
            known = self._indexes.setdefault(key, _Indexing())
            self._indexes.move_to_end(key)
            while len(self._indexes) > _REMEMBERED:
                self._indexes.popitem(last=False)
        with known.turn:
            if known.index is None:
                known.index = _index(file)
            return known.index

    # -- rows

    def _read(
        self, source: _Source, lines: Iterator[bytes], after: int, limit: int, prefix: str
    ) -> Iterator[RowAnswer]:
        with ExitStack() as opened:
            table = opened.enter_context(self._root.open(source.table)) if source.table else None
            read_bytes = 0
            for number, line in enumerate(itertools.islice(lines, limit), after):
                try:
                    whole = line if table is None else _referred(line, table, self._index_of(table))
                    read_bytes += len(whole)
                    yield self._answer(source.dataset, number, _decode(whole), prefix)
                except _BadRow as bad:
                    read_bytes += len(line)
                    yield RowAnswer(index=number, id=_id_of(line), error=str(bad))
                if read_bytes > ENOUGH_BYTES:
                    return

    def _answer(self, dataset: str, number: int, row: _Row, prefix: str) -> RowAnswer:
        return RowAnswer(
            index=number,
            id=row.id,
            image=self._picture(dataset, row, prefix),
            conversations=row.conversations,
            boxes=row.bounding_boxes,
            masks=row.masks,
            labels=row.labels,
            object_ids=row.object_ids,
            video_id=row.video_id,
            frame_index=row.frame_index,
            timestamp_sec=row.timestamp_sec,
        )

    def _picture(self, dataset: str, row: _Row, prefix: str) -> Picture | None:
        """Where the picture is had; none whose path leaves the dataset."""
        name = row.image_file or row.image
        if name is None:
            return None
        try:
            if name.startswith("/"):
                raise PathNotAllowed
            place: dict[str, Any] = {"path": self._root.confine(f"{dataset}/{name}")}
        except PathNotAllowed:
            raise _BadRow(f"Its image {name[:200]!r} lies outside of the dataset.") from None
        if row.image_file is not None:
            place |= {"offset": row.image_offset, "bytes": row.image_bytes}
        return Picture(url=f"{prefix}/data/image?{urlencode(place)}", width=row.width, height=row.height)


class _BadRow(Exception):
    """A row cannot be shown; the text says why."""


def _decode(line: bytes) -> _Row:
    if len(line) > LONGEST_LINE:
        raise _BadRow(f"The row is larger than {LONGEST_LINE:,} bytes.")
    try:
        return _decode_row(line)
    except _UNREADABLE as error:
        raise _BadRow(f"The row cannot be read: {error}.") from None


def _referred(line: bytes, table: BinaryIO, index: _Index) -> bytes:
    """The row that a line of a split means."""
    try:
        ref = _decode_ref(line)
    except _UNREADABLE as error:
        raise _BadRow(f"The row cannot be read: {error}.") from None
    whole = next(_lines(table, index, ref.arrow_row), None) if 0 <= ref.arrow_row < index.rows else None
    if whole is None or _id_of(whole) != ref.id:
        raise _BadRow("The row is not where it was: the dataset was converted again since. Split it again.")
    return whole


def _id_of(line: bytes) -> str | None:
    try:
        return _decode_id(line).id
    except _UNREADABLE:
        return None


# -- lines


def _index(file: BinaryIO) -> _Index:
    """One pass in blocks: no line is held, however long, and nothing is done for each."""
    starts, before = array("Q", [0]), array("Q", [0])
    rows = end = 0
    head = b""  # of the line that is under way, as much as tells whether it is blank
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        end += len(block)
        *ended, last = (head + block).split(b"\n")
        if ended:
            rows += len(ended) - sum(ended.count(blank) for blank in _BLANK)
            starts.append(end - len(last))
            before.append(rows)
        head = last[:2]
    return _Index(rows + (head not in _BLANK), starts, before)


def _lines(file: BinaryIO, index: _Index, first: int) -> Iterator[bytes]:
    """The rows from one on; of one that is too long its begin, a byte longer than the longest."""
    mark = bisect_right(index.before, first) - 1
    file.seek(index.starts[mark])
    number = index.before[mark]
    while line := file.readline(LONGEST_LINE + 1):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(_BLOCK_BYTES)):
            pass
        line = line.removesuffix(b"\n")
        if line in _BLANK:
            continue
        if number >= first:
            yield line
        number += 1


def _find(file: BinaryIO, index: _Index, row_id: str) -> int | None:
    """The number of the first row with that id: lines are decoded only where its text stands."""
    wanted = re.compile(rb'"id"\s*:\s*' + re.escape(msgspec.json.encode(row_id)))
    for mark, start in enumerate(index.starts):
        file.seek(start)
        end = index.starts[mark + 1] if mark + 1 < len(index.starts) else start + LONGEST_LINE + _BLOCK_BYTES
        text = file.read(min(end - start, LONGEST_LINE + _BLOCK_BYTES))
        if not wanted.search(text):
            continue
        number = index.before[mark]
        for line in text.split(b"\n"):
            if line in _BLANK:
                continue
            if wanted.search(line) and _id_of(line) == row_id:
                return number
            number += 1
    return None
