"""mask_integrity: every mask decodes, fits its grid, and covers something."""

from gpu_runner.sam2.masks import BadMask
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "mask_integrity"
_REMEDY = "Convert the export again; if it stays, the export's masks are broken: export again."


class MaskIntegrity:
    def __init__(self) -> None:
        self._broken, self._empty, self._unequal = Tally(), Tally(), Tally()
        self._example = ""

    def look(self, seen: Observed) -> None:
        row = seen.row
        for mask in seen.masks:
            if isinstance(mask, BadMask):
                self._broken.add(row.id)
                self._example = self._example or f"{row.id}: the mask {mask}"
            elif not mask.area:
                self._empty.add(row.id)
        if seen.masks and not len(seen.masks) == len(row.bounding_boxes) == len(row.labels):
            self._unequal.add(row.id)

    def findings(self) -> list[Finding]:
        example = self._example.replace("{", "(").replace("}", ")")
        return [
            *self._broken.finding(_RULE, "error", f"{{count}} masks cannot be decoded ({example}).", _REMEDY),
            *self._empty.finding(_RULE, "error", "{count} masks cover no pixel.", "Take these objects out."),
            *self._unequal.finding(
                _RULE, "error", "{count} rows don't have one mask, one box and one label for each object.", _REMEDY
            ),
        ]
