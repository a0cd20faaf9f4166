"""quality: objects too small to be seen, and frames with too little in them."""

from gpu_runner.sam2.observed import Observed, SeenMask
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "quality"
_SMALL = 0.001  # share of the image


class Quality:
    def __init__(self) -> None:
        self._rows = self._objects = 0
        self._small, self._bare = Tally(), Tally()

    def look(self, seen: Observed) -> None:
        if seen.row.image is None:
            return
        self._rows += 1
        self._objects += len(seen.masks)
        for mask in seen.masks:
            if isinstance(mask, SeenMask) and 0 < mask.share < _SMALL:
                self._small.add(seen.row.id)
        if not seen.masks:
            self._bare.add(seen.row.id)

    def findings(self) -> list[Finding]:
        small = self._small.finding(
            _RULE,
            "warning",
            f"{{count}} objects cover less than {_SMALL:.1%} of their image.",
            "A model sees the image at a few hundred pixels: crop closer, or leave such objects out.",
        )
        if self._objects >= self._rows:
            return small
        return [
            *small,
            *self._bare.finding(
                _RULE,
                "warning",
                f"There are {self._objects / self._rows:.2f} objects a frame on average, less than one: {{count}} "
                "frames show none.",
                "Annotate more objects, or take out frames that show none.",
            ),
        ]
