"""Polygons as masks: the outlines that COCO files state, filled by pycocotools. Used by the COCO reader."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import BadMask, Grid

_LONGEST_OUTLINE = 1_000_000  # pixels: pycocotools takes some 100 bytes for each


def fill(outlines: Sequence[Sequence[float]], grid: Grid) -> np.ndarray:
    """Column-major counts of what lies within any of the outlines, each x, y, x, y … in pixels of the grid.

    Raises:
        BadMask: there is none, or one is no outline, or lies far outside.
    """
    height, width = grid
    if height * width > masks.MAX_GRID_PIXELS:
        raise BadMask(f"covers more than {masks.MAX_GRID_PIXELS // 10**6} million pixels")
    if not outlines:
        raise BadMask("has no polygon")
    length = 0.0
    for number, outline in enumerate(outlines):
        points = np.array(outline, dtype=float)
        if len(points) < 6 or len(points) % 2:
            raise BadMask(f"has {len(points)} numbers in polygon {number}: it takes x and y of three points or more")
        points = points.reshape(-1, 2)
        if (points < [-width, -height]).any() or (points > [2 * width, 2 * height]).any():
            raise BadMask(f"has a point far outside of its picture of {width}x{height} in polygon {number}")
        length += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
    if length > _LONGEST_OUTLINE:
        raise BadMask(f"has an outline of {length:.0f} pixels, {_LONGEST_OUTLINE} are allowed")
    merged = coco.merge(coco.frPyObjects([list(outline) for outline in outlines], height, width))
    return masks.read_compressed(str(merged["counts"], "ascii"))
