"""Figures about a dataset: classes, videos, picture sizes, objects a frame, areas. Gathered by the validate recipe.

`largest` is for whoever else tells counts by name.

What a page can draw is a `Histogram`, or counts by name.
"""

from array import array
from collections import Counter
from typing import Any

import numpy as np

from gpu_runner.sam2.observed import Observed, SeenMask
from jobs.results import Histogram

_AREA_EDGES = (0.0, *(10 ** (step / 2) for step in range(-10, 1)))  # shares: two bars a power of ten, and what is less
_MOST_OBJECTS = 20  # in a frame: what has more shares the last bar
MOST_LABELS, _VIDEOS, _SIZES = 1000, 100, 20  # names counted one by one
OTHERS = "all others"


class Statistics:
    def __init__(self) -> None:
        self._rows = self._images = 0
        self._labels: Counter[str] = Counter()
        self._videos: Counter[str] = Counter()
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._objects = array("L")  # in each row
        self._areas = array("d")  # share of the mask's grid, of each mask

    def look(self, seen: Observed) -> None:
        row = seen.row
        self._rows += 1
        self._labels.update(row.labels)
        self._videos[row.video_id] += 1
        self._objects.append(max(len(seen.masks), len(row.bounding_boxes)))
        self._areas.extend(mask.share for mask in seen.masks if isinstance(mask, SeenMask))
        if isinstance(seen.picture, tuple):
            self._images += 1
            self._sizes[seen.picture] += 1

    def summary(self) -> dict[str, Any]:
        """`area` and `area_histogram` are in shares of the image."""
        return {
            "total_samples": self._rows,
            "total_images": self._images,
            "total_objects": sum(self._objects),
            "videos": len(self._videos),
            "labels": largest(self._labels, MOST_LABELS),
            "objects_per_frame": _spread(self._objects),
            "area": _spread(self._areas),
            "area_histogram": _histogram(self._areas, _AREA_EDGES),
            "objects_histogram": _histogram(self._objects, _object_edges(self._objects)),
            "picture_sizes": largest(
                Counter({f"{width}x{height}": count for (width, height), count in self._sizes.items()}), _SIZES
            ),
            "frames_per_video": largest(self._videos, _VIDEOS),
        }


def _spread(values: "array[Any]") -> dict[str, float]:
    if not values:
        return {}
    each = np.asarray(values)  # the same memory: no object is made of any
    figures = {"mean": each.mean(), "median": np.median(each), "min": each.min(), "max": each.max()}
    return {name: round(value.item(), 6) for name, value in figures.items()}


def largest(counts: "Counter[str]", most: int) -> dict[str, int]:
    """The largest counts, and the rest as one."""
    chosen = dict(counts.most_common(most))
    rest = counts.total() - sum(chosen.values())
    return {**chosen, OTHERS: chosen.get(OTHERS, 0) + rest} if rest else chosen


def _histogram(values: "array[Any]", edges: tuple[float, ...]) -> Histogram:
    """What lies beyond the last edge is counted in the last bar."""
    counts, _ = np.histogram(np.minimum(np.asarray(values), edges[-1]), bins=edges)
    return Histogram(edges=edges, counts=tuple(counts.tolist()))


def _object_edges(objects: "array[int]") -> tuple[float, ...]:
    """A bar for 0, for 1 …: the last edge is one beyond the largest number."""
    return tuple(float(number) for number in range(min(max(objects, default=0), _MOST_OBJECTS) + 2))
