"""A mask in few numbers: a point deep inside it, and its outline simplified. Used by `targets`.

Coordinates are whole numbers, 0..SCALE across the grid and 0..SCALE down it.
"""

from math import ceil, hypot, sqrt
from typing import NamedTuple

import numpy as np

from gpu_runner.rows import Mask
from gpu_runner.sam2 import masks

SCALE = 1000

_SIDE = 256  # pixels that are looked at along the longer side: beyond it SCALE could not tell more
_LOST = 0.1  # share of the area that looking coarsely may miss
_TOLERANCE = 0.025  # how far an outline may leave the true one, in square roots of the object's area …
_STAIR = 0.75  # … or in pixels: the steps of a slanting edge are no corners
_AREA_KEPT = 0.08  # by how much a simplified part may be smaller or larger than the part
_SPECK = 0.05  # parts below this share of the largest one are left out …
_PARTS = 8  # … and those beyond so many: an answer must stay one that can be learned
_POINTS = 60  # of one outline, at most


def inner_point(mask: Mask) -> list[int]:
    """x, y of the middle of the largest square that fits into the mask."""
    height, width = mask.size
    raster = _raster(mask)
    row, column = _deepest(raster.pixels)
    middle = raster.step // 2
    return [
        _unit(raster.left + column * raster.step + middle, width),
        _unit(raster.top + row * raster.step + middle, height),
    ]


def outlines(mask: Mask) -> list[list[int]]:
    """x1, y1, x2, y2, … around each part of the mask, the largest part first, clockwise; holes are ignored."""
    height, width = mask.size
    raster = _raster(mask)
    tolerance = max(_STAIR, _TOLERANCE * sqrt(np.count_nonzero(raster.pixels)))
    rings = sorted(_rings(raster.pixels), key=_area, reverse=True)[:_PARTS]
    large = [ring for ring in rings if _area(ring) >= _SPECK * _area(rings[0])]
    corner, sides = np.array([raster.left, raster.top]), np.array([width, height])
    return [
        np.rint(np.minimum(corner + _few_points(ring, tolerance) * raster.step, sides) * SCALE / sides)
        .astype(int)
        .ravel()
        .tolist()
        for ring in large
    ]


class _Raster(NamedTuple):
    """The box around a mask's foreground: bool (rows, columns), of which each stands for `step` pixels of the grid."""

    pixels: np.ndarray
    left: int
    top: int
    step: int


def _raster(mask: Mask) -> _Raster:
    """Raises BadMask."""
    height, width = mask.size
    counts = masks.read_compressed(str(mask.counts))
    masks.check_fits(counts, mask.size)
    left, top, across, down = map(int, masks.bounding_box(counts, height))
    if not across:
        raise masks.BadMask("is empty")
    pixels = masks.paint(counts).reshape(width, height).T[top : top + down, left : left + across]
    step = ceil(max(across, down) / _SIDE)
    sampled = pixels[step // 2 :: step, step // 2 :: step]
    if abs(1 - np.count_nonzero(sampled) * step**2 / np.count_nonzero(pixels)) > _LOST:  # it is thin
        return _Raster(pixels, left, top, 1)
    return _Raster(sampled, left, top, step)


def _unit(pixel: int, side: int) -> int:
    """Where the middle of a pixel lies on the scale. With up to SCALE pixels it reads back as the same pixel."""
    return ceil((pixel + 0.5) * SCALE / side - 0.5)


def _deepest(pixels: np.ndarray) -> tuple[int, int]:
    """Row and column; of several largest squares the one nearest to their mean, so a bar's point is in its middle."""
    sums = np.pad(pixels.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32), ((1, 0), (1, 0)))

    def full(side: int) -> np.ndarray:
        """By the upper left corner: whether the square is all foreground."""
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        return np.asarray(inside == side**2)

    fits, too_large = 1, min(pixels.shape) + 1
    while too_large - fits > 1:
        side = (fits + too_large) // 2
        fits, too_large = (side, too_large) if full(side).any() else (fits, side)
    places = np.argwhere(full(fits))
    nearest = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()] + (fits - 1) // 2
    return int(nearest[0]), int(nearest[1])


def _rings(pixels: np.ndarray) -> list[np.ndarray]:
    """The outer outline of every part that hangs together by its pixels' sides: its corners (n, 2) as x, y.

    Each side between foreground and background is an edge from one pixel corner to the next with the foreground on
    its right; where two parts touch at a corner the edge that turns right stays with its part.
    """
    padded = np.pad(pixels, 1).astype(np.int8)
    below, right = np.diff(padded, axis=0)[:, 1:], np.diff(padded, axis=1)[1:]  # by pixel corner
    stride = below.shape[1]
    begins = [np.flatnonzero(below > 0), np.flatnonzero(right < 0)]  # towards right, down
    begins += [np.flatnonzero(below < 0) + 1, np.flatnonzero(right > 0) + stride]  # left, up
    heading = np.repeat(np.arange(4), [len(some) for some in begins])
    begin = np.concatenate(begins)
    end = begin + np.array([1, stride, -1, -stride])[heading]
    edge_at = np.full(4 * below.size, -1)  # by corner and heading
    edge_at[begin * 4 + heading] = np.arange(len(begin))
    ahead = [edge_at[end * 4 + (heading + turn) % 4] for turn in (1, 0, 3)]  # right, straight on, left
    following = np.where(ahead[0] >= 0, ahead[0], np.where(ahead[1] >= 0, ahead[1], ahead[2]))
    is_corner = np.empty(len(begin), dtype=bool)
    is_corner[following] = heading[following] != heading
    loops = [loop[is_corner[loop]] for loop in _loops(following)]
    rings = [np.column_stack([begin[loop] % stride, begin[loop] // stride]) for loop in loops]
    return [ring for ring in rings if _area(ring) > 0]  # around a hole it is negative


def _loops(following: np.ndarray) -> list[np.ndarray]:
    """The cycles of a permutation."""
    after, unseen, loops = following.tolist(), bytearray(b"\1" * len(following)), []
    first = 0
    while first >= 0:
        loop, edge = [], first
        while unseen[edge]:
            unseen[edge] = 0
            loop.append(edge)
            edge = after[edge]
        loops.append(np.array(loop))
        first = unseen.find(1, first)
    return loops


def _area(ring: np.ndarray) -> float:
    """Positive when it runs clockwise as seen on a screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(x[:-1] @ y[1:] + x[-1] * y[0] - y[:-1] @ x[1:] - y[-1] * x[0]) / 2


def _few_points(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Some of the ring, within the tolerance; within less where its area would change, with at most _POINTS."""
    whole, simple = _area(ring), ring[_kept(ring, tolerance)]
    while abs(_area(simple) - whole) > _AREA_KEPT * whole and tolerance > 0.1:
        tolerance /= 2
        simple = ring[_kept(ring, tolerance)]
    while len(simple) > _POINTS:
        tolerance *= 2
        simple = ring[_kept(ring, tolerance)]
    return simple


def _kept(ring: np.ndarray, tolerance: float) -> list[int]:
    """Indices of the points that stay.

    Source: Douglas and Peucker 1973, "Algorithms for the reduction of the number of points required to represent a
    digitized line or its caricature"; on a ring, from its first point to the one farthest from it, and back.
    """
    x, y = np.concatenate([ring, ring[:1]]).astype(float).T.copy()
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    kept, waiting = {0, far}, [(0, far), (far, len(ring))]
    while waiting:
        begin, end = waiting.pop()
        if end - begin < 2:
            continue
        across, down = x[begin + 1 : end] - x[begin], y[begin + 1 : end] - y[begin]
        chord = x[end] - x[begin], y[end] - y[begin]
        length = hypot(*chord)
        beside = np.abs(across * chord[1] - down * chord[0]) if length else np.hypot(across, down)
        worst = int(beside.argmax())
        if beside[worst] > tolerance * (length or 1):
            between = begin + 1 + worst
            kept.add(between)
            waiting += [(begin, between), (between, end)]
    return sorted(kept)
