"""Figures about a dataset: counts of classes, objects a frame, areas. Gathered by the validate recipe."""

from array import array
from collections import Counter
from statistics import fmean, median
from typing import Any

import numpy as np

from gpu_runner.sam2 import masks
from gpu_runner.sam2.observed import Observed


class Statistics:
    def __init__(self) -> None:
        self._rows = self._images = 0
        self._labels: Counter[str] = Counter()
        self._videos: set[str] = set()
        self._objects = array("L")  # in each row
        self._areas = array("d")  # share of the mask's grid, of each mask

    def look(self, seen: Observed) -> None:
        row = seen.row
        self._rows += 1
        self._images += isinstance(seen.picture, tuple)
        self._labels.update(row.labels)
        self._videos.add(row.video_id)
        self._objects.append(max(len(row.masks), len(row.bounding_boxes)))
        for counts, mask in zip(seen.masks, row.masks, strict=True):
            if isinstance(counts, np.ndarray):
                self._areas.append(masks.area(counts) / (mask.size[0] * mask.size[1]))

    def summary(self) -> dict[str, Any]:
        """`area` is in shares of the image."""
        return {
            "total_samples": self._rows,
            "total_images": self._images,
            "total_objects": sum(self._objects),
            "videos": len(self._videos),
            "labels": dict(self._labels.most_common()),
            "objects_per_frame": _spread(self._objects),
            "area": _spread(self._areas),
        }


def _spread(values: "array[Any]") -> dict[str, float]:
    if not values:
        return {}
    figures = {"mean": fmean(values), "median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 6) for name, value in figures.items()}
