"""images: every picture exists, decodes, and has the size its row states."""

from gpu_runner.images import BadImage
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "images"


class Pictures:
    def __init__(self) -> None:
        self._unusable, self._resized = Tally(), Tally()
        self._example = ""

    def look(self, seen: Observed) -> None:
        row = seen.row
        if isinstance(seen.picture, BadImage):
            self._unusable.add(row.id)
            self._example = self._example or f"{row.id}: {seen.picture}"
        elif seen.picture and row.width and row.height and seen.picture != (row.width, row.height):
            self._resized.add(row.id)

    def findings(self) -> list[Finding]:
        example = self._example.replace("{", "(").replace("}", ")")
        return [
            *self._unusable.finding(
                _RULE,
                "error",
                f"{{count}} images are missing or broken ({example}).",
                "Convert the export again; if it stays, the export lacks them: export again.",
            ),
            *self._resized.finding(
                _RULE,
                "error",
                "{count} images have another size than their rows state, so boxes and masks don't fit them.",
                "Put the original images back, or convert again.",
            ),
        ]
