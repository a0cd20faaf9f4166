"""missing_annotations: rows with a picture in which nothing is annotated, and frames that were left out for it."""

from gpu_runner.rows import Rows
from gpu_runner.sam2 import manifest, split_config
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "missing_annotations"


class MissingAnnotations:
    """An error, unless the dataset was converted with the wish to keep such frames as negative examples."""

    def __init__(self, rows: Rows) -> None:
        said = manifest.read(rows.dataset)
        self._wanted = said is not None and said.options.keep_empty_frames
        self._skipped = said.skipped_frames if said and split_config.read_beside(rows) is None else 0
        self._rows = 0
        self._bare = Tally()

    def look(self, seen: Observed) -> None:
        self._rows += 1
        if seen.row.image is not None and not seen.masks and not seen.row.bounding_boxes:
            self._bare.add(seen.row.id)

    def findings(self) -> list[Finding]:
        share = self._bare.count / max(1, self._rows)
        return [
            *self._bare.finding(
                _RULE,
                "warning" if self._wanted else "error",
                f"{{count}} frames ({share:.1%}) have no annotations.",
                "They were kept as negative examples; see that they are few."
                if self._wanted
                else "Annotate them, take them out, or convert with keep_empty_frames if they are meant.",
            ),
            *self._left_out(),
        ]

    def _left_out(self) -> list[Finding]:
        if not self._skipped:
            return []
        share = self._skipped / (self._skipped + self._rows)
        return [
            Finding(
                rule=_RULE,
                severity="warning",
                message=f"{self._skipped} frames ({share:.1%}) of the export have no annotations and were left out.",
                count=self._skipped,
                remedy="Annotate them, or convert with keep_empty_frames to keep them as negative examples.",
            )
        ]
