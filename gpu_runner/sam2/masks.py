"""Binary masks as run lengths: the three encodings of exports, and what can be computed without painting a mask.

Runs alternate background, foreground, beginning with background. A *grid* is (height, width). Unless said otherwise
runs are column-major, as COCO has it. Counts are int64 arrays, areas pixels of the grid, boxes (x, y, w, h) in them.

Source: the COCO mask API, `cocoapi/common/maskApi.c`. Its decoder reads beyond the end of a malformed string,
so compressed strings from outside are decoded here; encoding is left to pycocotools.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from pycocotools import mask as coco

MAX_GRID_PIXELS = 50_000_000

_NUMBER_CHARACTERS = dict.fromkeys(map(ord, "0123456789 \t\r\n"))

Box = tuple[float, float, float, float]
Grid = tuple[int, int]


class BadMask(Exception):
    """A mask that cannot be decoded; the text completes 'the mask …'."""


def read_plain(text: str) -> np.ndarray:
    """Counts of a string of numbers separated by spaces. Raises BadMask."""
    if not text.strip() or text.translate(_NUMBER_CHARACTERS):
        raise BadMask("is no list of whole non-negative numbers")
    return _bounded(np.fromstring(text, dtype=np.int64, sep=" "))  # saturates, so _bounded sees what overflows


def read_list(numbers: Sequence[int]) -> np.ndarray:
    """Counts of a list of numbers. Raises BadMask."""
    try:
        return _bounded(np.array(numbers, dtype=np.int64))
    except (OverflowError, ValueError, TypeError):
        raise BadMask("has counts that are no whole numbers of sensible size") from None


def read_compressed(text: str) -> np.ndarray:
    """Counts of COCO's compressed string. Raises BadMask."""
    (counts,) = read_all_compressed([text])
    if isinstance(counts, BadMask):
        raise counts
    return counts


def read_all_compressed(texts: Sequence[str]) -> list[np.ndarray | BadMask]:
    """Counts of each of COCO's compressed strings, or what is wrong with it.

    Decoded as one: of strings as short as masks of video frames are, most of the time goes into calling numpy.
    """
    try:
        numbers, ends = _numbers(texts)
    except BadMask as error:
        return [error] if len(texts) == 1 else [each for text in texts for each in read_all_compressed([text])]
    return [_from_differences(numbers[begin:end]) for begin, end in pairwise([0, *ends])]


def _numbers(texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """What the strings' characters say, one behind the other, and where the numbers of each string end.

    Each character carries five bits, low ones first, a sixth says that more follow, the highest of the last is the
    sign.
    """
    codes = np.frombuffer("".join(texts).encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - 48
    last = ((codes & 0x20) == 0).nonzero()[0]
    ends = np.cumsum([len(text) for text in texts])
    after = last.searchsorted(ends)
    if not all(texts) or codes.min() < 0 or codes.max() > 63 or (codes[ends - 1] & 0x20).any():
        raise BadMask("is no COCO string, or was cut")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - first.repeat(last - first + 1)
    if place.max() > 6:  # seven groups hold 35 bits: more than any count of an allowed grid
        raise BadMask("has a count beyond any image")
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    numbers -= ((codes[last] & 0x10) << 1) << (5 * (last - first))
    return numbers, after.tolist()


def _from_differences(numbers: np.ndarray) -> np.ndarray | BadMask:
    """From the fourth count on a number is the difference to the count two before it."""
    numbers[2::2] = numbers[2::2].cumsum()
    numbers[1::2] = numbers[1::2].cumsum()
    try:
        return _bounded(numbers)
    except BadMask as error:
        return error


def write_compressed(counts: np.ndarray, grid: Grid) -> str:
    """COCO's compressed string of column-major counts."""
    encoded = coco.frPyObjects({"size": list(grid), "counts": counts.tolist()}, *grid)
    return str(encoded["counts"], "ascii")


def check_fits(counts: np.ndarray, grid: Grid) -> None:
    """Raises BadMask when the runs don't cover the grid exactly."""
    height, width = grid
    total = int(counts.sum())
    if height < 1 or width < 1 or total != height * width:
        raise BadMask(f"has runs of {total} pixels, its grid of {width}x{height} has {height * width}")


def transpose(counts: np.ndarray, grid: Grid) -> np.ndarray:
    """Column-major counts of a mask whose counts are row-major; the grid stays the same."""
    height, width = grid
    first = int(counts[0]) // width  # rows above and below the mask need no look
    last = height - (int(counts[-1]) // width if len(counts) % 2 else 0)
    if first >= last:
        return np.array([height * width])
    pixels = np.zeros((last - first + 2, width), dtype=bool)  # with an empty row at either end
    pixels[1:-1].reshape(-1)[:] = paint(counts)[first * width : last * width]
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    rows = changes // width
    starts = np.sort((changes - rows * width) * height + rows + first)
    return _between(_joined(starts, height * width), height * width)


def _joined(starts: np.ndarray, end: int) -> np.ndarray:
    """Without the pairs where a run ends at a column's foot as the next one begins at the next column's head."""
    if starts[-1] == end:
        starts = starts[:-1]
    twice = np.flatnonzero(starts[1:] == starts[:-1])
    return np.delete(starts, [twice, twice + 1]) if len(twice) else starts


def _between(starts: np.ndarray, end: int) -> np.ndarray:
    """The lengths of the runs that begin at 0 and at each of the starts."""
    lengths = np.empty(len(starts) + 1, dtype=np.int64)
    lengths[0] = starts[0] if len(starts) else end
    np.subtract(starts[1:], starts[:-1], out=lengths[1:-1])
    if len(starts):
        lengths[-1] = end - starts[-1]
    return lengths


def count_runs(flat: np.ndarray) -> np.ndarray:
    """Counts of a flat bool array: the opposite of `paint`."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], runs]) if flat[0] else runs


def paint(counts: np.ndarray) -> np.ndarray:
    """The pixels in the order of the runs; bool, flat."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def area(counts: np.ndarray) -> int:
    return int(counts[1::2].sum())


def bounding_box(counts: np.ndarray, height: int) -> Box:
    """The smallest box around the foreground of column-major counts; (0, 0, 0, 0) when there is none."""
    ends = np.cumsum(counts)
    starts, stops = (ends - counts)[1::2], ends[1::2]
    filled = stops > starts
    starts, last = starts[filled], stops[filled] - 1
    if not len(starts):
        return 0.0, 0.0, 0.0, 0.0
    left, right = starts[0] // height, last[-1] // height
    wraps = starts // height != last // height  # a run over a column's end touches bottom and top
    top = 0 if wraps.any() else (starts % height).min()
    bottom = height - 1 if wraps.any() else (last % height).max()
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def box_of(text: str, grid: Grid) -> Box:
    """What `bounding_box` gives, of a compressed string that we wrote: pycocotools is faster and trusts it."""
    left, top, width, height = coco.toBbox({"size": grid, "counts": text.encode()}).tolist()
    return left, top, width, height


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 for boxes without area."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union > 0 else 0.0


def scaled(box: Box, grid: Grid, width: int, height: int) -> Box:
    """A box of the grid in pixels of an image, to a hundredth."""
    across, down = width / grid[1], height / grid[0]
    return (
        round(box[0] * across, 2),
        round(box[1] * down, 2),
        round(box[2] * across, 2),
        round(box[3] * down, 2),
    )


def _bounded(counts: np.ndarray) -> np.ndarray:
    if counts.ndim != 1 or not len(counts):
        raise BadMask("has no counts")
    if counts.min() < 0:
        raise BadMask("has a negative count")
    if counts.sum(dtype=np.float64) > MAX_GRID_PIXELS:  # the sum of whole numbers might wrap around
        raise BadMask(f"covers more than {MAX_GRID_PIXELS // 10**6} million pixels")
    return counts
