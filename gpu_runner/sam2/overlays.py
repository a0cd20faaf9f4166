"""Whether an annotation tool painted its answer into a picture: the outline that it drew around an object.

`outline` is called by `observed` for some pictures of a validation; the rule of the same name judges what it gives
over all of them.

Tools lay a see-through colour over an object, draw its outline as a line of one colour, and write its label beside
it. The line is what can be told reliably: nearly all along the edge of the mask there is one colour, and along the
same edge moved a little inwards or outwards there is not. A flat object has its colour further inside as well, one
before a flat wall has the wall's further outside, and a photograph has no colour all along.

Not looked for: the colour laid over (its trace is a contrast that is smaller inside than outside and a hue that
differs, which a plain coloured object before a lively ground shows as well), and text (which comes with the line, and
which scenes hold too).

Source: what is painted is that of `cv2.drawContours`; the thresholds were set on painted and unpainted frames of a
real video, of flat drawings and of noise, see the tests.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL import Image

Colour = tuple[float, float, float]

_THICKNESS = 2  # pixels of the line to each side of the edge
_WINDOW = 320  # pixels across and down that are looked at: part of a large object is enough
_FEWEST = 60  # pixels of an edge: fewer say nothing
_STRAY = 30  # grey levels by which a line differs from its own colour after compression
_STRANGE = 25  # grey levels by which it differs from every blend of inside and outside
_COVERED, _BARE = 0.85, 0.6  # shares of an edge that are near the colour: where it is drawn, and where it is not


def outline(pixels: np.ndarray, grid: np.ndarray, box: Sequence[float]) -> Colour | None:
    """The colour of the line around an object; None where there is none, or where it cannot be told.

    `pixels` are uint8 (height, width, 3), `grid` is the object's mask, bool and of any size, `box` is x, y, width and
    height in pixels.
    """
    cell = max(pixels.shape[0] / grid.shape[0], pixels.shape[1] / grid.shape[1])
    reach = _THICKNESS + ceil(max(0.0, cell - 1) / 2)  # of a coarse grid nobody knows how the tool made it finer
    window = _window(pixels, grid, box, 3 * reach + 4)
    mask, around = _cut(grid, pixels.shape, window), pixels[window].astype(np.int16)
    inner, outer = _shrunk(mask, 2 * reach + 2), _grown(mask, 2 * reach + 2)
    edges = [_edge(each) for each in (mask, inner, outer)]
    if min(edge.sum() for edge in edges) < _FEWEST:
        return None
    band = _grown(mask, reach) & ~_shrunk(mask, reach)
    colour = _peculiar(around[band], around[inner], around[~outer])
    if colour is None:
        return None
    close = _grown(_is_near(around, colour), reach)
    drawn, inside, outside = (close[edge].mean() for edge in edges)
    if drawn < _COVERED or max(inside, outside) > _BARE:
        return None
    if _apart(colour, np.median(around[inner], axis=0), np.median(around[~outer], axis=0)) < _STRANGE:
        return None
    red, green, blue = colour.tolist()
    return red, green, blue


def _window(pixels: np.ndarray, grid: np.ndarray, box: Sequence[float], margin: int) -> tuple[slice, slice]:
    """Rows and columns around an object; of a large one, around its leftmost point."""
    height, width = pixels.shape[:2]
    left, top = int(box[0]) - margin, int(box[1]) - margin
    across, down = ceil(box[2]) + 2 * margin, ceil(box[3]) + 2 * margin
    if down > _WINDOW:
        leftmost = grid[:, grid.any(axis=0).argmax()]
        top = int(leftmost.argmax() * height / grid.shape[0]) - _WINDOW // 2
    bottom, right = top + min(down, _WINDOW), left + min(across, _WINDOW)
    return slice(max(0, top), max(0, min(height, bottom))), slice(max(0, left), max(0, min(width, right)))


def _cut(grid: np.ndarray, picture: tuple[int, ...], window: tuple[slice, slice]) -> np.ndarray:
    """A window of the mask in pixels of the picture; bool."""
    down, across = grid.shape[0] / picture[0], grid.shape[1] / picture[1]
    rows, columns = window
    part = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
    size = columns.stop - columns.start, rows.stop - rows.start
    shades = Image.fromarray(grid.view(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR, part)
    return np.asarray(shades) > 127


def _peculiar(band: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray | None:
    """The colour that is commoner in the first than in the others by most; int16 (3,). None when none is."""
    shares = [np.bincount(_bins(colours), minlength=512) / max(1, len(colours)) for colours in (band, inside, outside)]
    lead = shares[0] - np.maximum(shares[1], shares[2])
    at = int(lead.argmax())
    if lead[at] <= 0:
        return None
    return np.asarray(np.median(band[_bins(band) == at], axis=0), dtype=np.int16)


def _bins(colours: np.ndarray) -> np.ndarray:
    """Three bits of each channel."""
    coarse = colours >> 5
    return np.asarray((coarse[:, 0] << 6) | (coarse[:, 1] << 3) | coarse[:, 2])


def _apart(colour: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """How far a colour is from all that the two can blend to, as they do along any edge."""
    way = other - one
    share = np.clip((colour - one) @ way / max(1.0, way @ way), 0, 1)
    return float(np.abs(one + share * way - colour).max())


def _is_near(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    near = np.abs(pixels - colour) <= _STRAY
    return np.asarray(near[..., 0] & near[..., 1] & near[..., 2])  # over an axis of three, `all` is slow


def _edge(mask: np.ndarray) -> np.ndarray:
    return np.asarray(mask & ~_shrunk(mask, 1))


def _shrunk(mask: np.ndarray, by: int) -> np.ndarray:
    return np.asarray(~_grown(~mask, by))


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask and all within so many pixels, diagonals included."""
    for _ in range(by):
        taller = mask.copy()
        taller[1:] |= mask[:-1]
        taller[:-1] |= mask[1:]
        mask = taller.copy()
        mask[:, 1:] |= taller[:, :-1]
        mask[:, :-1] |= taller[:, 1:]
    return mask
