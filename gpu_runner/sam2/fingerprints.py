"""What each picture of a dataset looks like, in 44 bytes: kept by validation, read by whoever looks for look-alikes.

`of_picture` is called by `observed` for every picture a validation opens, `write` by the validate recipe at its end;
splitting and the leakage rule call `of`, which opens pictures only where nothing was kept.

A record holds a difference hash of 64 bits, one of 256, and the mean colour. A difference hash says of each cell of a
small grey copy whether the one to its right is lighter: recompression, scaling and brightness leave it as it is. The
short hash finds look-alikes in near-linear time: two that differ in at most three bits agree in at least one of its
four 16-bit quarters, so only pictures that share a quarter need comparing. The long one confirms them, and the colour
tells flat pictures apart, of which all hashes are 0.

Source: the difference hash of N. Krawetz, "Kind of Like That" (2013); the quarters are the multi-index of M. Norouzi,
A. Punjani and D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing" (CVPR 2012).
"""

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from gpu_runner.images import BadImage
from gpu_runner.rows import Rows, open_rows
from gpu_runner.sam2.manifest import sha256_of
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot

RECORD = np.dtype([("coarse", "<u8"), ("fine", "<u8", 4), ("colour", "u1", 3), ("is_there", "u1")])
NONE = bytes(RECORD.itemsize)  # of a row without a picture that can be opened

_CELLS = (18, 16)  # across and down; 2 x 2 of them are a cell of the coarse hash
_LIGHTER = 1.5  # grey levels: less is noise
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_KEPT_S = 30 * 24 * 3600
_AHEAD = 64  # pictures opened between two looks at `check`


def of_picture(picture: Image.Image) -> bytes:
    """The record of an RGB picture."""
    small = np.asarray(picture.resize(_CELLS, Image.Resampling.BOX, reducing_gap=3.0), dtype=np.float32)
    grey = small @ _GREY
    coarse = grey.reshape(8, 2, 9, 2).sum(axis=(1, 3)) / 4
    colour = (small.reshape(-1, 3).sum(axis=0) / small[..., 0].size).astype(np.uint8)
    return b"".join((_differences(coarse), _differences(grey[:, :17]), colour.tobytes(), b"\1"))


def of(rows: Rows, root: DataRoot, cores: int, check: Callable[[], None]) -> np.ndarray:
    """The record of every row, in order; dtype RECORD, `is_there` 0 where a row has no usable picture.

    Read from what a validation kept of these rows, or of the dataset they were cut from; else made, in threads, and
    kept. `check` is called between pictures and may raise.
    """
    kept = _read(rows, root)
    if kept is None:
        kept = _of_part(rows, root)
    if kept is None:
        kept = np.frombuffer(_make(rows, cores, check), dtype=RECORD)
        write(rows, root, kept.tobytes())
    return kept


def write(rows: Rows, root: DataRoot, records: bytes | bytearray) -> None:
    """Keep the records of all rows, one behind the other."""
    target = root.fingerprints(_key(rows, root))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{secrets.token_hex(4)}")
    try:
        with unfinished.open("wb") as file:
            file.write(records)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    _forget_old(target.parent)


def _forget_old(folder: Path) -> None:
    """Remove what was not used for weeks: the rows or pictures it was made of have changed since."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # somebody else is at it
            if time.time() - file.stat().st_mtime > _KEPT_S:
                file.unlink()


def _differences(cells: np.ndarray) -> bytes:
    return bytes(np.packbits(cells[:, 1:] > cells[:, :-1] + _LIGHTER))


def _key(rows: Rows, root: DataRoot) -> str:
    """SHA-256 over the contents of the files of rows, and over the size and time of every other file of the dataset:
    reading all pictures to see whether one was replaced would take as long as what is kept saves."""
    digest = hashlib.sha256(root.name_of(rows.dataset).encode())
    for file in rows.files:
        digest.update(sha256_of(file).encode())
    for file in sorted(rows.dataset.rglob("*")):
        state = file.lstat()
        if not stat.S_ISDIR(state.st_mode):
            name = file.relative_to(rows.dataset)
            digest.update(f"{name} {state.st_size} {state.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read(rows: Rows, root: DataRoot) -> np.ndarray | None:
    file = root.fingerprints(_key(rows, root))
    try:
        content = file.read_bytes()
        os.utime(file)
    except FileNotFoundError:
        return None
    return np.frombuffer(content, dtype=RECORD) if len(content) == len(rows) * RECORD.itemsize else None


def _of_part(rows: Rows, root: DataRoot) -> np.ndarray | None:
    """The records of a split's rows, out of those of their dataset; None where these were not kept."""
    try:
        whole = open_rows(root, root.name_of(rows.dataset))
        kept = _read(whole, root)
        if kept is None or whole.files == rows.files:
            return None
        place = {row_id: index for index, row_id in enumerate(whole.ids())}
        return kept[[place[row_id] for row_id in rows.ids()]] if len(place) == len(whole) else None
    except (DatasetInvalid, ValueError, KeyError):  # no whole dataset, or not the one these rows were cut from
        return None


def _make(rows: Rows, cores: int, check: Callable[[], None]) -> bytes:
    made = bytearray()
    with ThreadPoolExecutor(max(1, cores)) as pool:  # PIL decodes without holding the interpreter's lock
        for begin in range(0, len(rows), _AHEAD):
            check()
            made.extend(b"".join(pool.map(lambda at: _of_row(rows, at), range(begin, min(begin + _AHEAD, len(rows))))))
    return bytes(made)


def _of_row(rows: Rows, index: int) -> bytes:
    try:
        image = rows[index].image
        return NONE if image is None else of_picture(rows.read_image(index, image))
    except (DatasetInvalid, BadImage):
        return NONE
