"""quality: objects too small to be seen, and frames with too little in them."""

import numpy as np

from gpu_runner.sam2 import masks
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "quality"
_SMALL = 0.001  # share of the image


class Quality:
    def __init__(self) -> None:
        self._rows = self._objects = 0
        self._small = Tally()

    def look(self, seen: Observed) -> None:
        if seen.row.image is None:
            return
        self._rows += 1
        self._objects += len(seen.row.masks)
        for counts, mask in zip(seen.masks, seen.row.masks, strict=True):
            if isinstance(counts, np.ndarray) and 0 < masks.area(counts) < _SMALL * mask.size[0] * mask.size[1]:
                self._small.add(seen.row.id)

    def findings(self) -> list[Finding]:
        small = self._small.finding(
            _RULE,
            "warning",
            f"{{count}} objects cover less than {_SMALL:.1%} of their image.",
            "A model sees the image at a few hundred pixels: crop closer, or leave such objects out.",
        )
        if self._rows and self._objects < self._rows:
            small.append(
                Finding(
                    rule=_RULE,
                    severity="warning",
                    message=f"There are {self._objects / self._rows:.2f} objects a frame on average, less than one.",
                    count=self._rows - self._objects,
                    remedy="Annotate more objects, or take out frames that show none.",
                )
            )
        return small
