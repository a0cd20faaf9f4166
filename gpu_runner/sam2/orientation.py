"""In which direction an export's run lengths count pixels: down the columns, as COCO has it, or along the rows.

Genuine exports of the SAM2 annotation tool count along the rows, and their boxes were computed after reading the
runs down the columns. Found out once per export from objects spread over it, by the convert recipe.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import Grid
from jobs.specs import MaskOrder

_CLEARLY = 1.2  # how many times as well one order must fit as the other …
_SURELY = 1.5  # … and where the pictures alone speak against what is known of the tool
_DRAWN = 0.25  # share of all change in the pictures that may lie along a few outlines; filmed frames have some 0.05
_FITS = 0.9  # mean IoU from which stated boxes count as those of the masks
_LOW_RESOLUTION = (256, 256)  # the grid of SAM2's mask decoder


class Probe(NamedTuple):
    """One object: its counts as stated, the grid, the stated box in pixels of the grid, and its picture's edges.

    `edges` has the grid's shape: how much the picture changes at each pixel; objects of one picture share it.
    `is_own_size` says that the picture has the size of the grid.
    """

    counts: np.ndarray
    grid: Grid
    box: Sequence[float]
    edges: np.ndarray | None
    is_own_size: bool = False


class Orientation(NamedTuple):
    """`order` is ROW or COLUMN. `reason` says why; `warning` what the user should look at."""

    order: MaskOrder
    reason: str
    warning: str | None = None


def detect(probes: Sequence[Probe]) -> Orientation:
    """The order that fits the probes best."""
    column, row = np.sum([_neighbours(probe) for probe in probes], axis=0) if probes else (0, 0)
    if max(column, row) > _CLEARLY * min(column, row):
        order = MaskOrder.COLUMN if column > row else MaskOrder.ROW
        times = max(column, row) / max(1, min(column, row))
        return Orientation(order, f"read {_way(order)}, the masks hang together {times:.1f} times as well")
    return _by_boxes(probes)


def _by_boxes(probes: Sequence[Probe]) -> Orientation:
    """For masks that hang together both ways, as every mask of a square grid does."""
    column, row = _box_fit(probes)
    if row >= _FITS and row > column:
        return Orientation(MaskOrder.ROW, f"read along the rows, the masks' boxes are those stated (IoU {row:.2f})")
    if column >= _FITS and any(probe.grid[0] != probe.grid[1] for probe in probes):
        return Orientation(
            MaskOrder.COLUMN, f"read down the columns, the masks' boxes are those stated (IoU {column:.2f})"
        )
    if column >= _FITS:
        return _square(probes)
    return Orientation(
        MaskOrder.COLUMN,
        "neither the masks nor their boxes tell; down the columns is COCO's way",
        "The order of the masks' runs could not be found out: look at a few frames, and convert again with "
        "mask_order 'row' if masks lie transposed.",
    )


def _square(probes: Sequence[Probe]) -> Orientation:
    """A square grid whose boxes fit the columns: either all is right, or the tool's known slip made both wrong.

    Only the pictures can tell, unless they were drawn from the masks themselves: then they say how somebody read the
    runs. Where they don't tell, the low-resolution grid is the tool's own, whose runs are known to be row-major.
    """
    column, row = _edge_fit(probes)
    seen = MaskOrder.COLUMN if column > _CLEARLY * row else MaskOrder.ROW if row > _CLEARLY * column else None
    is_low = all(probe.grid == _LOW_RESOLUTION for probe in probes)
    if seen is MaskOrder.COLUMN and is_low and (column < _SURELY * row or _are_drawn(probes)):
        return Orientation(MaskOrder.ROW, _LOW, _CONTRADICTED)
    if seen is not None:
        return Orientation(seen, f"the grid is square; read {_way(seen)}, the masks follow the edges in the pictures")
    if is_low and not any(probe.is_own_size for probe in probes):
        return Orientation(MaskOrder.ROW, _LOW)
    return Orientation(
        MaskOrder.ROW,
        "the grid is square and the boxes fit both readings; the SAM2 exporter writes runs along the rows",
        "On a square grid the order of the masks' runs cannot be seen: convert again with mask_order 'column' if "
        "masks lie transposed.",
    )


_LOW = (
    "a square 256x256 grid is the low-resolution output of SAM2, whose exporter writes runs along the rows; read so, "
    "the masks' boxes are those stated with x/y and w/h swapped, which is its known slip"
)
_CONTRADICTED = (
    "Read down the columns, the masks would follow the edges in the pictures better than read as they were: look at a "
    "few frames, and convert again with mask_order 'column' if masks lie transposed."
)


def _neighbours(probe: Probe) -> tuple[int, int]:
    """Pairs of foreground pixels beside each other across the runs, read down the columns and along the rows."""
    flat = masks.paint(probe.counts)
    height, width = probe.grid
    return (
        int(np.count_nonzero(flat[height:] & flat[:-height])),
        int(np.count_nonzero(flat[width:] & flat[:-width])),
    )


def _box_fit(probes: Sequence[Probe]) -> tuple[float, float]:
    """Mean IoU of the stated boxes with the masks' own, read down the columns and along the rows."""
    fits = [
        (
            masks.iou(masks.bounding_box(probe.counts, probe.grid[0]), probe.box),
            masks.iou(masks.bounding_box(masks.transpose(probe.counts, probe.grid), probe.grid[0]), probe.box),
        )
        for probe in probes
        if len(probe.box) == 4
    ]
    if not fits:
        return 0.0, 0.0
    column, row = np.mean(fits, axis=0)
    return float(column), float(row)


def _edge_fit(probes: Sequence[Probe]) -> tuple[float, float]:
    """How much the pictures change along the masks' outlines, read down the columns and along the rows."""
    fits = []
    for probe in probes:
        if probe.edges is not None:
            height, width = probe.grid
            flat = masks.paint(probe.counts)
            outlines = _outline(flat.reshape(width, height).T), _outline(flat.reshape(height, width))
            fits.append([float(probe.edges[each].mean()) if each.any() else 0.0 for each in outlines])
    if not fits:
        return 0.0, 0.0
    column, row = np.mean(fits, axis=0)
    return float(column), float(row)


def _are_drawn(probes: Sequence[Probe]) -> bool:
    """Whether the pictures show little but the masks, read down the columns."""
    pictures: dict[int, np.ndarray] = {}
    along = 0.0
    for probe in probes:
        if probe.edges is not None:
            height, width = probe.grid
            pictures[id(probe.edges)] = probe.edges
            along += float(probe.edges[_outline(masks.paint(probe.counts).reshape(width, height).T)].sum())
    return along > _DRAWN * sum(float(edges.sum()) for edges in pictures.values())


def _outline(mask: np.ndarray) -> np.ndarray:
    """Where a mask begins or ends, as `edges` are counted."""
    outline = np.zeros_like(mask)
    outline[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    outline[1:] |= mask[1:] != mask[:-1]
    return outline


def _way(order: MaskOrder) -> str:
    return "along the rows" if order is MaskOrder.ROW else "down the columns"
